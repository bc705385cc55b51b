"""What a setting is judged by: a number per result row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # of results.ROW_SCHEMA
Objective = Callable[[Row], float]

KINDS = "reward, reward@N (best reward after N samples), area (mean of the best reward over samples), judge.NAME"


def make_objective(text: str, judges: Sequence[str]) -> Objective:
    """The objective of a name. An error row has none (NaN), also where its traces hold rewards from before the error.

    Raises:
        ValueError: there is none of that name.
    """
    measure = _measure(text, judges)
    return lambda row: measure(row) if row["status"] == "ok" else math.nan


def samples_of(text: str) -> int | None:
    """N of `reward@N`; None for anything else."""
    name, _, count = text.partition("@")
    return int(count) if name == "reward" and count.isdecimal() and int(count) > 0 else None


def _measure(text: str, judges: Sequence[str]) -> Objective:
    if text == "reward":
        return lambda row: _number(row["reward"])
    if text == "area":
        return area
    samples = samples_of(text)
    if samples is not None:
        return lambda row: reward_after(row, samples)
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
