"""The actors: one process around a `PolicyWorker` or a `RewardWorker`.

Methods are synchronous. Those of the group `work` run in many threads, which only wait for the worker's one thread;
those of the group `health` answer while the model loads or computes. Calls are many and short, so Ray keeps no events
of them: `ray list tasks` shows the loading alone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from importlib.metadata import version
from typing import Any

import ray

from aisp_ray.cluster.failures import CallError, sort_error, sort_load_error
from aisp_ray.cluster.local import device_of, quiet_libraries
from aisp_ray.cluster.wire import pack, unpack
from aisp_ray.policy.base import PolicySpec
from aisp_ray.rewards.base import RewardSpec, ScoreRequest
from aisp_ray.types import Placement, Prompt
from aisp_ray.worker import PolicyWorker, RewardWorker

_LOOK_SECONDS = 1.0  # how often a waiting call looks whether the worker's thread is still there


class _ModelActor:
    """What both kinds share: placing, loading, waiting, counting."""

    def __init__(self, spec: Any, name: str):
        self.spec = spec
        self.name = name
        self.worker: Any = None
        self._ready = threading.Event()

    @ray.method(concurrency_group="health")
    def place(self) -> dict[str, Any]:
        """Answers as soon as the process runs: which node, which process, which GPUs."""
        context = ray.get_runtime_context()
        return {"node": context.get_node_id(), "pid": os.getpid(), "gpus": context.get_accelerator_ids().get("GPU", [])}

    def load(self) -> dict[str, Any]:
        """Load the model, once. Returns what there is to know about it."""
        started = time.perf_counter()
        prepare_process(self.spec)
        try:
            share_gpu(self.spec)
            self.worker = self._make_worker(device_of(self.spec))
        except BaseException as error:  # a SystemExit of somebody's own class would end the process without a word
            raise sort_load_error(error) from None
        self._ready.set()
        return {"load_seconds": time.perf_counter() - started, **self._facts()}

    @ray.method(concurrency_group="health", enable_task_events=False)
    def stats(self) -> dict[str, float]:
        return self.worker.stats() if self.worker is not None else {}

    def _make_worker(self, device: str) -> Any:
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        return {}

    def _wait(self, future: Future[Any]) -> Any:
        while True:
            try:
                return future.result(timeout=_LOOK_SECONDS)
            except FutureTimeout:
                if future.done():
                    if (error := future.exception()) is not None:  # the model itself raised a TimeoutError
                        raise sort_error(error) from None
                elif not self.worker.alive:
                    raise CallError("broken", f"the thread of {self.name} has ended") from None
            except Exception as error:
                failed = sort_error(error)
                if not self.worker.alive and isinstance(failed, CallError):
                    failed = CallError("broken", failed.text)
                raise failed from None


class PolicyActor(_ModelActor):
    """`types.Policy` in its own process."""

    spec: PolicySpec

    @ray.method(concurrency_group="work", enable_task_events=False)
    def rollout(self, call: bytes) -> bytes:
        """The packed `Rollouts` of a packed (prompt, proposal, seed)."""
        return pack(self._wait(self.worker.submit(*unpack(call))))

    @ray.method(concurrency_group="health")
    def describe(self, prompt: Prompt) -> str | None:
        return self.worker.policy.describe(prompt)

    def _make_worker(self, device: str) -> PolicyWorker:
        return PolicyWorker(lambda: self.spec.load(device))

    def _facts(self) -> dict[str, Any]:
        return {"engine": dict(self.worker.policy.engine.fingerprint)}


class RewardActor(_ModelActor):
    """`types.Reward` in its own process: a reward model or a judge."""

    spec: RewardSpec

    @ray.method(concurrency_group="work", enable_task_events=False)
    def score(self, call: bytes) -> bytes:
        """The packed `Scores` of a packed (prompt, responses)."""
        return pack(self._wait(self.worker.submit(ScoreRequest(*unpack(call)))))

    @ray.method(concurrency_group="health")
    def describe(self, prompt: Prompt) -> str | None:
        return self.worker.scorer.describe(prompt)

    def _make_worker(self, device: str) -> RewardWorker:
        return RewardWorker(lambda: self.spec.load(device))


def prepare_process(spec: Placement) -> None:
    """Threads and noise of this process, before a model library is imported."""
    if spec.num_gpus == 0:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(spec.threads)
    elif not _on_vllm(spec):
        # freed pieces of memory join again: tiles, batches and prompts are of many sizes
        old = tuple(int(part) for part in version("torch").split(".")[:2]) < (2, 9)
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF" if old else "PYTORCH_ALLOC_CONF", "expandable_segments:True")
    quiet_libraries()
    if spec.num_gpus == 0 and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(spec.threads)


def share_gpu(spec: Placement) -> None:
    """Take no more than this actor's part of the memory of a GPU that it shares; vLLM bounds itself."""
    if 0 < spec.num_gpus < 1 and not _on_vllm(spec):
        from aisp_ray.lm import memory

        memory.share_gpu(spec.num_gpus)


def _on_vllm(spec: Placement) -> bool:
    return getattr(spec, "engine", None) == "vllm"


def remote_class(cls: type, spec: Placement, calls: int) -> Any:
    """The Ray actor class with the resources of `spec` and threads for `calls` calls at once."""
    options: dict[str, Any] = {
        "num_gpus": spec.num_gpus,
        "num_cpus": 0 if spec.num_gpus > 0 else spec.num_cpus,
        "max_restarts": 0,  # the pool replaces an actor itself: one budget, one place that knows who is alive
        "max_task_retries": 0,
        "concurrency_groups": {"work": max(calls, 1), "health": 2},
        "scheduling_strategy": "SPREAD",
    }
    if spec.label_selector:
        options["label_selector"] = dict(spec.label_selector)
        options["scheduling_strategy"] = "DEFAULT"
    return ray.remote(**options)(cls)
