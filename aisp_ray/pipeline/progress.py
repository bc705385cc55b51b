"""What the person sees while a run goes on: one live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from aisp_ray.errors import redacted, visible

_WINDOW = 60.0  # seconds over which rates are taken
_STALL = 60.0  # seconds without a finished call after which the line says so


class Meter:
    """Counts of the run so far. Rates are those of the last minute."""

    def __init__(self, num_methods: int, clock: Any = time.monotonic):
        self.num_methods = num_methods
        self.num_rows_total: int | None = None  # known when the stream has ended, or by its limit
        self.num_rows = 0
        self.num_earlier = 0  # rows that an earlier run left
        self.num_errors = 0
        self.num_iterations = 0
        self.num_tokens = 0
        self.best = -math.inf
        self._clock = clock
        self.started = clock()
        self.last_finished = self.started  # when an iteration last finished
        self._marks: deque[tuple[float, int, int, float]] = deque()
        self._work_done = 0.0  # in searches, unfinished ones by their share

    def iteration(self, tokens: int, share: float, best: float) -> None:
        """An iteration of a search that has `1 / share` of them ended."""
        self.num_iterations += 1
        self.num_tokens += tokens
        self._work_done += share
        self.last_finished = self._clock()
        if math.isfinite(best):
            self.best = max(self.best, best)

    def row(self, ok: bool) -> None:
        self.num_rows += 1
        self.num_errors += not ok

    def rates(self) -> tuple[float, float, float]:
        """(iterations, tokens, searches) a second over the last minute."""
        now = self._clock()
        self._marks.append((now, self.num_iterations, self.num_tokens, self._work_done))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
            self._marks.popleft()
        then = self._marks[0] if now > self._marks[0][0] else (self.started, 0, 0, 0.0)
        seconds = max(now - then[0], 1e-9)
        return tuple((at - before) / seconds for at, before in zip(self._marks[-1][1:], then[1:], strict=True))

    def seconds_left(self, searches_a_second: float) -> float | None:
        """By the share of iterations done, so that the estimate is there before the first prompt is."""
        if self.num_rows_total is None or searches_a_second <= 0:
            return None
        left = self.num_rows_total - self.num_earlier - max(self._work_done, self.num_rows)
        return max(0.0, left / searches_a_second)

    def line(self, pools: Mapping[str, Any], in_flight: int) -> str:
        """The progress line."""
        iterations, tokens, searches = self.rates()
        done = _plain((self.num_rows + self.num_earlier) / self.num_methods)
        total = "?" if self.num_rows_total is None else _plain(self.num_rows_total / self.num_methods)
        parts = [f"prompts {done}/{total}", f"{iterations:.3g} iterations/s", f"{tokens:.0f} tokens/s"]
        parts.append("best reward " + (f"{self.best:.4g}" if math.isfinite(self.best) else "-"))
        if self.num_errors:
            parts.append(f"{self.num_errors} error rows")
        parts += [f"{name} {_actors(pool)}" for name, pool in pools.items()]
        left = self.seconds_left(searches)
        parts.append(
            f"{clock(self._clock() - self.started)} gone, " + (f"{clock(left)} left" if left is not None else "? left")
        )
        quiet = self._clock() - self.last_finished
        if in_flight and quiet > _STALL:
            parts.append(f"nothing finished for {clock(quiet)}: {longest(pools)}")
        return " · ".join(parts)


def _plain(count: float) -> str:
    """12345.0 -> '12345', 2.5 -> '2.5'."""
    return f"{count:.1f}".removesuffix(".0")


def _actors(pool: Any) -> str:
    counts = {state: sum(replica.state == state for replica in pool.replicas) for state in ("ready", "loading")}
    words = f"{counts['ready']}/{len(pool.replicas)}"
    return f"{words} ({counts['loading']} loading)" if counts["loading"] else words


def longest(pools: Mapping[str, Any]) -> str:
    """Who holds the oldest call: '2:10 rollout of shp/test/00000012, iteration 3 (policy-1)'."""
    calls = [
        (call.sent, call.what, replica.name)
        for pool in pools.values()
        for replica in pool.replicas
        for call in replica.calls.values()
    ]
    if calls:
        sent, what, name = min(calls)
        return f"{clock(time.monotonic() - sent)} {what} ({name})"
    empty = [name for name, pool in pools.items() if not any(replica.state == "ready" for replica in pool.replicas)]
    return f"no actor is ready in {', '.join(empty)}" if empty else "no call is under way"


def clock(seconds: float) -> str:
    """75 -> '1:15', 3675 -> '1:01:15'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Screen:
    """Writes lines and one live line to a terminal, or plain lines to a log."""

    def __init__(self, stream: TextIO | None = None, every: float = 15.0, as_json: bool = False):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() and not as_json
        self.every = 0.5 if self.live else every
        self.as_json = as_json
        self._shown = 0

    def say(self, text: str, **fields: Any) -> None:
        """A line that stays. fields: what a JSON log carries beside it."""
        text = visible(redacted(text))
        if self.as_json:
            text = json.dumps({"time": round(time.time(), 3), "message": text, **fields}, default=str)
        self._write(text + "\n")

    def show(self, line: str) -> None:
        """The progress line, over the one before where there is a terminal."""
        if not self.live:
            self.say(line)
            return
        line = line[: shutil.get_terminal_size().columns - 1]
        self._write(line)
        self._shown = len(line)

    def _write(self, text: str) -> None:
        """Over the live line, if one is there. That nobody reads it any more is no failure of the run."""
        clear, self._shown = "\r\x1b[2K" if self._shown else "", 0
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(clear + text)
            self.stream.flush()


class ScreenHandler(logging.Handler):
    """The package's log records on the screen, with their `extra` fields in a JSON log."""

    def __init__(self, screen: Screen):
        super().__init__(logging.INFO if screen.as_json else logging.WARNING)
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            name: getattr(record, name)
            for name in ("prompt_id", "method", "iteration", "pool", "kind")
            if hasattr(record, name)
        }
        self.screen.say(record.getMessage(), level=record.levelname, logger=record.name, **fields)
