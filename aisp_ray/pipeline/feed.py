"""Prompts from a blocking iterator in a thread to an async one, read ahead up to a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from aisp_ray.errors import as_exception
from aisp_ray.types import Prompt

_LOOK_SECONDS = 0.2  # how often a reader that waits for room looks whether anybody still takes


class Feed:
    """Async iterator over `read()`, which runs in its own thread. Its exceptions are raised to the taker, of whom there
    is one.

    The reader fills the queue and then sleeps until half of it is taken, so that the threads rarely wake each other.
    """

    def __init__(self, read: Callable[[], Iterator[Prompt]], ahead: int = 4096):
        self.total: int | None = None  # prompts in all, once the reader has seen the last
        self._heard = time.monotonic()  # when the reader last gave a prompt, or began
        self._read = read
        self._ahead = ahead
        self._loop = asyncio.get_running_loop()
        self._items: deque[Prompt | Exception | None] = deque()
        self._hungry = False  # the taker waits for `_came`
        self._came = asyncio.Event()
        self._room = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Prompt:
        while not self._items:
            self._came.clear()
            self._hungry = True
            if not self._items:  # looked at again: the reader may have put one before it could see the flag
                await self._came.wait()
        item = self._items.popleft()
        if len(self._items) <= self._ahead // 2:
            self._room.set()
        if isinstance(item, Exception):
            raise item
        if item is None:
            raise StopAsyncIteration
        return item

    @property
    def quiet_seconds(self) -> float:
        """How long the taker has had nothing to take from a reader that has not ended."""
        busy = self.total is not None or bool(self._items)
        return 0.0 if busy else time.monotonic() - self._heard

    def close(self) -> None:
        """Stop reading; the thread ends at its next prompt."""
        self._closed.set()
        self._room.set()

    @property
    def _nobody_takes(self) -> bool:
        return self._closed.is_set() or self._loop.is_closed()

    def _run(self) -> None:
        count = 0
        try:
            for prompt in self._read():
                if not self._put(prompt):
                    return
                count += 1
        except BaseException as error:  # an exit in somebody's own parsing rule would leave the taker waiting
            self._put(as_exception(error))
            return
        self.total = count
        self._put(None)

    def _put(self, item: Prompt | Exception | None) -> bool:
        """False if nobody takes any more."""
        if len(self._items) >= self._ahead:
            self._room.clear()
            while len(self._items) > self._ahead // 2 and not self._nobody_takes:
                self._room.wait(_LOOK_SECONDS)
        if self._nobody_takes:
            return False
        self._items.append(item)
        self._heard = time.monotonic()
        if self._hungry:
            self._hungry = False
            try:
                self._loop.call_soon_threadsafe(self._came.set)
            except RuntimeError:  # the loop is closed
                return False
        return True
