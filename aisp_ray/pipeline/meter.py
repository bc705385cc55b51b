"""How far a run is and how fast: the counts behind the progress lines."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_WINDOW = 60.0  # seconds over which rates are taken
_STALL = 60.0  # seconds without a finished call after which the line says so


@dataclass(frozen=True, slots=True)
class Status:
    """What a running run reports, the most important facts first."""

    head: str  # "searches 14/24"
    share: float | None = None  # of the work that is done, 0 to 1; None: unknown
    time: str = ""  # "0:45 gone, about 1:10 left"
    facts: tuple[str, ...] = ()
    trouble: str = ""  # why nothing moves

    def line(self) -> str:
        """All of it in one line, for a log."""
        percent = "" if self.share is None else f"{self.share:.0%}"
        return " · ".join(part for part in (self.head, percent, *self.facts, self.time, self.trouble) if part)


class Meter:
    """Counts of the run so far. Rates are those of the last minute."""

    def __init__(self, num_methods: int, clock: Callable[[], float] = time.monotonic):
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
        self._began: float | None = None
        self.last_finished = self.started  # when an iteration last finished
        self._marks: deque[tuple[float, int, int, float]] = deque()
        self._work_done = 0.0  # in searches, unfinished ones by their share

    def begin(self) -> None:
        """The models are there: rates and the time left count from now."""
        self._began = self.last_finished = self._clock()
        self._marks.clear()
        self._marks.append((self._began, self.num_iterations, self.num_tokens, self._work_done))

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
        iterations, tokens, searches = (
            (at - before) / seconds for at, before in zip(self._marks[-1][1:], then[1:], strict=True)
        )
        return iterations, tokens, searches

    def seconds_left(self, searches_a_second: float, in_flight: int) -> float | None:
        """By the share of iterations done, so that the estimate is there before the first prompt is.

        None before the first round of the searches in flight: until then most of the work that is done has not ended.
        """
        if self.num_rows_total is None or searches_a_second <= 0 or self.num_iterations < in_flight:
            return None
        left = self.num_rows_total - self.num_earlier - max(self._work_done, self.num_rows)
        return max(0.0, left / searches_a_second)

    def status(self, pools: Mapping[str, Any], in_flight: int, spent: str = "") -> Status:
        """What is shown now. in_flight: searches under way. spent: actor hours and money so far, in words."""
        iterations, tokens, searches = self.rates()
        done, total = self.num_rows + self.num_earlier, self.num_rows_total
        noun = "prompts" if self.num_methods == 1 else "searches"  # one search is one prompt under one method
        worked = min(max(self._work_done, self.num_rows) + self.num_earlier, math.inf if total is None else total)
        facts = [f"best reward {self.best:.4g}"] if math.isfinite(self.best) else []
        facts += [f"{self.num_errors} error rows"] if self.num_errors else []
        facts += [f"{tokens:,.0f} tokens/s", f"{iterations:.3g} iterations/s"] if self.num_iterations else []
        facts += [f"{name} {_actors(pool)}" for name, pool in pools.items()]
        facts += [spent] if spent else []
        quiet = self._clock() - self.last_finished
        return Status(
            head=f"{noun} {done}/{'?' if total is None else total}",
            share=worked / total if total else None,
            time=f"{clock(self._clock() - self.started)} gone, {self._left(searches, in_flight)}",
            facts=tuple(facts),
            trouble=f"nothing finished for {clock(quiet)}: {longest(pools)}" if in_flight and quiet > _STALL else "",
        )

    def _left(self, searches_a_second: float, in_flight: int) -> str:
        if self._began is None:
            return "loading models"
        left = self.seconds_left(searches_a_second, in_flight)
        return "? left" if left is None else f"about {clock(left)} left"


def _actors(pool: Any) -> str:
    counts = {state: sum(replica.state == state for replica in pool.replicas) for state in ("ready", "loading")}
    words = f"{counts['ready']}/{len(pool.replicas)}"
    return f"{words} ({counts['loading']} loading)" if counts["loading"] else words


def longest(pools: Mapping[str, Any]) -> str:
    """Who holds the oldest call: '2:10 rollout of shp/test/00000012, iteration 3 (policy-1)'."""
    calls = [
        (sent.at, sent.call.what, replica.name)
        for pool in pools.values()
        for replica in pool.replicas
        for sent in replica.calls.values()
    ]
    if calls:
        at, what, name = min(calls)
        return f"{clock(time.monotonic() - at)} {what} ({name})"
    empty = [name for name, pool in pools.items() if not any(replica.state == "ready" for replica in pool.replicas)]
    return f"no actor is ready in {', '.join(empty)}" if empty else "no call is under way"


def clock(seconds: float) -> str:
    """75 -> '1:15', 3675 -> '1:01:15'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
