"""How calls and replies cross between the driver and its actors at little cost for the driver, which serves them all.

A call's arguments are one block of bytes, and so is its reply: Ray would pickle each argument for itself, in Python.
Replies that arrive while the event loop is busy wake it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import operator
import pickle
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry
from aisp_ray.errors import DataError, described
from aisp_ray.types import Message, Prompt, Proposal, Rollout, Rollouts, Sampling


def _by_fields(cls: Any) -> Callable[[Any], tuple[type, tuple[Any, ...]]]:
    """Pickles a dataclass as a call of it: its own way, in Python, takes five times as long."""
    fields = dataclasses.fields(cls)
    assert all(field.init and not field.kw_only for field in fields), cls
    values = operator.attrgetter(*(field.name for field in fields))
    return lambda value: (cls, values(value))


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    cls: _by_fields(cls) for cls in (Message, OpenLoop, Prompt, Proposal, Rollout, Rollouts, Sampling, WeightEntry)
}
_OWN_MODULE = b"__main__"  # classes of a notebook or script, which the other process cannot import


def pack(value: Any) -> bytes:
    """The value as bytes that any process of the run can read.

    By pickle, which is in C. What pickle would name as a part of somebody's notebook, or cannot write at all, is sent
    whole, as Ray does.

    Raises:
        DataError: it holds what cannot leave its process, such as an open file.
    """
    written = io.BytesIO()
    pickler = pickle.Pickler(written, protocol=5)
    pickler.dispatch_table = _REDUCERS
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):
        pickler.dump(value)
        data = written.getvalue()
        if _OWN_MODULE not in data:
            return data
    from ray import cloudpickle

    try:
        return cloudpickle.dumps(value)
    except Exception as error:  # of the class whose object it is
        raise DataError(f"it cannot be sent to another process: {described(error)}") from error


def unpack(data: bytes) -> Any:
    """What `pack` was given."""
    return pickle.loads(data)


class Replies:
    """Futures of the running event loop for what actors will reply."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._awake = False  # whether the loop will look at what arrived

    def future(self, reply: Awaitable[Any]) -> asyncio.Future[Any]:
        """Of an object reference, or of anything else that can be awaited."""
        if not hasattr(reply, "future"):
            return asyncio.ensure_future(reply)
        loop = asyncio.get_running_loop()
        mine: asyncio.Future[Any] = loop.create_future()

        def arrive(done: Future[Any]) -> None:
            """In a thread of Ray's."""
            self._arrived.append((mine, done))
            if not self._awake:
                self._awake = True
                with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                    loop.call_soon_threadsafe(self._deliver)

        reply.future().add_done_callback(arrive)
        return mine

    def _deliver(self) -> None:
        self._awake = False  # before looking, so that none is missed
        while self._arrived:
            mine, done = self._arrived.popleft()
            if mine.done():  # cancelled meanwhile
                continue
            error = done.exception()
            if error is None:
                mine.set_result(done.result())
            else:
                mine.set_exception(error)
