"""Prompts from a blocking iterator in a thread to an async one, read ahead up to a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

from aisp_ray.errors import as_exception
from aisp_ray.types import Prompt


class Feed:
    """Async iterator over `read()`, which runs in its own thread. Its exceptions are raised to the taker."""

    def __init__(self, read: Callable[[], Iterator[Prompt]], ahead: int = 4096):
        self.total: int | None = None  # prompts in all, once the reader has seen the last
        self._heard = time.monotonic()  # when the reader last gave a prompt, or began
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Prompt | Exception | None] = asyncio.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Prompt:
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            raise StopAsyncIteration
        return item

    @property
    def quiet_seconds(self) -> float:
        """How long the taker has had nothing to take from a reader that has not ended."""
        busy = self.total is not None or not self._queue.empty()
        return 0.0 if busy else time.monotonic() - self._heard

    def close(self) -> None:
        """Stop reading; the thread ends at its next prompt."""
        self._closed.set()

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
        put = self._queue.put(item)
        try:
            waiting = asyncio.run_coroutine_threadsafe(put, self._loop)
        except RuntimeError:  # the loop is closed
            put.close()
            return False
        self._heard = time.monotonic()
        while True:
            try:
                waiting.result(timeout=0.2)
                return not self._closed.is_set()
            except TimeoutError:
                if self._closed.is_set():
                    waiting.cancel()
                    return False
            except asyncio.CancelledError:
                return False
