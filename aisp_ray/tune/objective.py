"""What a setting is judged by: a number per result row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # of results.ROW_SCHEMA
Objective = Callable[[Row], float]

KINDS = "reward, reward@N (best reward after N samples), area (mean of the best reward over samples), judge.NAME"


def make_objective(text: str, judges: Sequence[str]) -> Objective:
    """The objective of a name.

    Raises:
        ValueError: there is none of that name.
    """
    name, mark, count = text.partition("@")
    if text == "reward":
        return lambda row: _number(row["reward"])
    if text == "area":
        return area
    if name == "reward" and mark and count.isdigit() and int(count) > 0:
        return lambda row: reward_after(row, int(count))
    judge = text.removeprefix("judge.")
    if text.startswith("judge.") and judge in judges:
        return lambda row: _number(dict(zip(row["judge_names"], row["judge_rewards"], strict=True)).get(judge))
    known = f"judges={list(judges)}" if text.startswith("judge.") else KINDS
    raise ValueError(f"objective={text}: there is no such measure; known: {known}")


def reward_after(row: Row, samples: int) -> float:
    """Best reward after the last iteration that ended within `samples` samples; NaN before the first ended."""
    found = math.nan
    for seen, best in zip(row["num_samples_seen"] or (), row["reward_best"] or (), strict=True):
        if seen <= samples:
            found = _number(best)
    return found


def area(row: Row) -> float:
    """Mean of the best reward so far over all samples drawn: rewards a method for being early."""
    seen, best = row["num_samples_seen"] or (), row["reward_best"] or ()
    if not seen:
        return math.nan
    widths = [after - before for before, after in zip((0, *seen[:-1]), seen, strict=True)]
    return sum(width * _number(value) for width, value in zip(widths, best, strict=True)) / seen[-1]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
