"""The machines of a run in this process: what a job does is done, without the processes that it would start.

The job, its store, pools, actors and workers are the real ones. An actor's calls run in threads instead of a process of
its own, and what they are given and answer is pickled as on the way there and back; prompts are read and files written
without Ray Data, by the functions that its tasks call. tests/ray holds that Ray adds nothing to the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from aisp_ray.cluster.placement import Node
from aisp_ray.data.stream import rows_locally
from aisp_ray.files import Output

_CPUS = 64.0


def in_this_process(replace: Callable[[str, Any], None]) -> None:
    """Every run from now on. replace: `monkeypatch.setattr`, or what does the same for good."""
    replace("aisp_ray.cluster.remote.RayBackend", Threads)
    replace("aisp_ray.cluster.remote.joined", _joined)
    replace("aisp_ray.cluster.remote.cpus_now", lambda: (_CPUS, _CPUS))
    replace("aisp_ray.cluster.actors.prepare_process", lambda spec: None)  # it is not the actor's own
    replace("aisp_ray.pipeline.waiting.cpus_now", lambda: (_CPUS, _CPUS))
    replace("aisp_ray.pipeline.job.stream_prompts", rows_locally)
    replace("aisp_ray.pipeline.job.be_quiet", lambda: None)
    replace("aisp_ray.pipeline.store._write_by_ray_data", _write_here)


@contextlib.contextmanager
def _joined(*_: Any) -> Iterator[list[Node]]:
    yield [Node(_CPUS, 0.0, {})]


def _write_here(output: Output) -> Callable[[Mapping[tuple[str, int], Any], str], None]:
    def write(tables: Mapping[tuple[str, int], Any], folder: str) -> None:
        for part, table in tables.items():
            output.write_part(table, *part, folder)

    return write


class Threads:
    """`cluster.pool.Backend`: actors whose calls run in threads."""

    def __init__(self, cls: type, spec: Any, calls: int):
        self._cls, self._spec = cls, spec

    def create(self, name: str) -> ThreadActor:
        return ThreadActor(self._cls(_sent(self._spec), name))

    def kill(self, handle: ThreadActor) -> None:
        handle.kill()


class ThreadActor:
    """The handle of an actor in this process."""

    def __init__(self, actor: Any):
        self._actor = actor

    def __getattr__(self, method: str) -> _Method:
        return _Method(_place if method == "place" else getattr(self._actor, method))

    def kill(self) -> None:
        worker = self._actor.worker
        if worker is not None:
            threading.Thread(target=worker.close, daemon=True).start()  # it may be in the middle of a step


class _Method:
    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        future: Future[Any] = Future()
        threading.Thread(target=self._run, args=(future, _sent(args)), daemon=True).start()
        return asyncio.wrap_future(future)

    def _run(self, future: Future[Any], args: tuple[Any, ...]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(_sent(self._call(*args)))
        except BaseException as error:
            future.set_exception(_sent(error))


def _place() -> dict[str, Any]:
    return {"node": "this process", "pid": os.getpid(), "gpus": []}


def _sent(value: Any) -> Any:
    """A copy, as another process would get it."""
    return pickle.loads(pickle.dumps(value))
