"""How a run ends: its exit code, decided here for every command, and signals, which end it in time.

Whatever the code, the same command resumes where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from aisp_ray.errors import (
    FAILED,
    INTERRUPTED,
    RETRY,
    TERMINATED,
    LimitError,
    PoolError,
    RefusedError,
    StarvationError,
    refuse,
)
from aisp_ray.pipeline.progress import Screen, ScreenHandler

_EXIT_SECONDS = 2.6  # after a signal: `ray job stop` kills after 3 s


class Ending:
    """Turns whatever ends a run into an exit code and a sentence on the screen."""

    def __init__(self, screen: Screen, out: str, on_signal: Callable[[], None] = lambda: None):
        """on_signal: what must be done first when a signal comes, in the little time that is left."""
        self.screen = screen
        self.again = f"the same command resumes from {out}"
        self.stopped: int | None = None  # the exit code of the signal that came
        self._on_signal = on_signal
        self._guarded: asyncio.Task[Any] | None = None
        self._reason: Exception | None = None  # why the guarded work was stopped from inside

    def run(self, main: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """The exit code of `main()`, with the package's log records on the screen."""
        handler = ScreenHandler(self.screen)
        package = logging.getLogger("aisp_ray")
        package.addHandler(handler)
        package.setLevel(handler.level)
        package.propagate = False
        try:
            return asyncio.run(main())
        except BaseException as error:
            return self._code_of(error)
        finally:
            package.removeHandler(handler)
            self.screen.close()

    async def guard(self, work: Coroutine[Any, Any, int]) -> int:
        """The exit code of `work`, which a signal cancels.

        Once the machines are open, as Ray takes SIGTERM for itself when it starts.
        """
        try:
            self._guarded = asyncio.current_task()
            with self._signals():
                return await work
        except BaseException as error:
            return self._code_of(self._reason or error)
        finally:
            self._guarded = None

    def stop(self, reason: Exception) -> None:
        """End the work that is guarded now, as if it had raised `reason`."""
        if self._guarded is not None and self._reason is None:
            self._reason = reason
            self._guarded.cancel()

    def _code_of(self, error: BaseException) -> int:
        if self.stopped is not None:
            self.screen.say(f"stopped by a signal; {self.again}")
            return self.stopped
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # Ray's way, before `guard`
            return TERMINATED
        if isinstance(error, RefusedError):
            return refuse(error)
        if isinstance(error, LimitError):
            self.screen.say(f"stopped: {error}")
            return RETRY
        if isinstance(error, StarvationError):
            self.screen.say(f"error: {error}\n{self.again}")
            return RETRY
        said = str(error) or type(error).__name__
        if not isinstance(error, PoolError | ValueError):
            said = f"{said}\n{''.join(traceback.format_exception(error))}\n{self.again}"
        self.screen.say(f"error: {said}")
        return FAILED

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C cancel the task, within the time that `ray job stop` leaves."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        assert main is not None

        def stop(code: int) -> None:
            if self.stopped is None:
                self.stopped = code
                timer = threading.Timer(_EXIT_SECONDS, os._exit, (code,))
                timer.daemon = True
                timer.start()
                main.cancel()  # before anything that may fail
                with contextlib.suppress(Exception):  # tried again at the end, where a failure is said
                    self._on_signal()

        numbers = {signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}
        for number, code in numbers.items():
            loop.add_signal_handler(number, stop, code)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                if self.stopped is not None:  # a second Ctrl-C must not tear what is being written
                    signal.signal(number, signal.SIG_IGN)
