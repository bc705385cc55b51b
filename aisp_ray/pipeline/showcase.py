"""One prompt with the best response of each method: what a run shows while it runs, and at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aisp_ray.errors import redacted, visible

_FIRST = 3.0  # seconds after the first rewards until something is shown
_EVERY = 60.0  # seconds between two
_MOST_OPEN = 2000  # prompts that are remembered
_MOST_PROMPT, _MOST_RESPONSE = 240, 400  # characters


@dataclass(frozen=True, slots=True)
class Shown:
    """The best response that a method has to a prompt."""

    response: str
    reward: float
    ended: bool = True  # False: the search is still running


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and its best responses, by method; None where there is none."""

    prompt: str
    best: Mapping[str, Shown | None]

    @property
    def num_ended(self) -> int:
        return sum(shown is None or shown.ended for shown in self.best.values())

    def drawing(self) -> RenderableType:
        """The prompt, then a line per method that wraps inside its column."""
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(overflow="fold", max_width=24)
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(overflow="fold", ratio=1)
        for method, shown in self.best.items():
            if shown is None:
                grid.add_row(Text(method, style="bold"), "-", Text("no response", style="red"))
                continue
            text = Text(_short(shown.response, _MOST_RESPONSE) or "(empty)")
            text.append("" if shown.ended else "  (best so far)", style="dim")
            grid.add_row(Text(method, style="bold"), _number(shown.reward), text)
        head = Text("prompt  ", style="bold").append(_short(self.prompt, _MOST_PROMPT), style="not bold")
        return Group(Text(), head, grid, Text())


class Showcase:
    """Collects the best responses of a run and says when it is time to show a prompt."""

    def __init__(self, methods: Sequence[str], clock: Callable[[], float] = time.monotonic):
        self._methods = tuple(methods)
        self._clock = clock
        self._open: dict[str, Sample] = {}  # by prompt id: its searches go on
        self._whole: Sample | None = None  # the last prompt that every method has ended
        self._due: float | None = None

    def note(self, prompt_id: str, prompt: str, method: str, shown: Shown | None) -> None:
        """The best response of a method so far; None: its search ended without one."""
        sample = self._open.get(prompt_id, Sample(prompt, {}))
        best = {name: sample.best.get(name) for name in self._methods if name in sample.best or name == method}
        sample = replace(sample, best={**best, method: shown})
        self._open[prompt_id] = sample
        if sample.num_ended == len(self._methods):
            self._whole = self._open.pop(prompt_id)
        elif len(self._open) > _MOST_OPEN:  # after a resume, some methods of a prompt have ended before
            del self._open[next(iter(self._open))]
        if self._due is None:
            self._due = self._clock() + _FIRST

    def take(self) -> Sample | None:
        """A prompt to show now, one with all methods where there is one; None where it is not time yet."""
        now = self._clock()
        if self._due is None or now < self._due:
            return None
        sample, self._whole = self._whole, None
        if sample is None and self._open:
            sample = max(self._open.values(), key=lambda each: (each.num_ended, len(each.best)))
        if sample is not None:
            self._due = now + _EVERY
        return sample


def first_whole(columns: Mapping[str, Sequence[Any]], methods: Iterable[str]) -> Sample | None:
    """Of an output's rows: the first prompt, in input order, to which every method has a response.

    columns: ordinal, prompt_id, prompt, label, status, response, reward.
    """
    names = list(methods)
    order = sorted(range(len(columns["ordinal"])), key=lambda i: (columns["ordinal"][i] or 0, i))
    found: dict[str, Sample] = {}
    for i in order:
        if columns["status"][i] != "ok" or columns["label"][i] not in names:
            continue
        reward = columns["reward"][i]
        shown = Shown(columns["response"][i] or "", math.nan if reward is None else reward)
        sample = found.setdefault(columns["prompt_id"][i], Sample(columns["prompt"][i] or "", {}))
        best = {**sample.best, columns["label"][i]: sample.best.get(columns["label"][i]) or shown}
        found[columns["prompt_id"][i]] = replace(sample, best=best)
        if len(best) == len(names):
            return Sample(sample.prompt, {name: best[name] for name in names})
    return None


def _number(reward: float) -> str:
    return f"{reward:.3g}" if math.isfinite(reward) else "-"


def _short(text: str, most: int) -> str:
    """In one paragraph, without what a terminal obeys, and cut with a mark."""
    words = visible(redacted(" ".join(text.split())))
    return words if len(words) <= most else f"{words[: most - 3]}..."
