"""What each method had found after a part of the samples: the best-so-far curves as a table with paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aisp_ray.metrics.base import NUM_RESAMPLES, Estimate, estimates
from aisp_ray.report.formats import with_intervals
from aisp_ray.report.table import Grid

SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class AtSamples:
    """One label after a number of samples a prompt."""

    samples: float
    reward: Estimate  # best so far, mean over prompts
    gain: Estimate  # over the baseline's best so far after as many samples, paired; NaN for the baseline itself


def at_shares(
    columns: Mapping[str, Sequence], grid: Grid, base: str | None, seed: int = 0
) -> dict[str, tuple[AtSamples, ...]]:
    """Per label, best reward so far after each of `SHARES` of the samples that the baseline draws a prompt.

    Without a baseline: of the most that any label draws. A round counts once it is drawn whole; a label whose first
    round is larger has no value. A search that ended earlier keeps its best reward.
    """
    shown = [base] if base is not None else grid.labels
    drawn = [columns["num_samples_seen"][row] for label in shown for row in grid.rows(label)]
    budget = max((samples[-1] for samples in drawn if samples), default=0)
    if not budget:
        return {}
    counts = [share * budget for share in SHARES]
    best = [_after(columns["num_samples_seen"], columns["reward_best"], count) for count in counts]
    lines = {}
    for label in sorted(grid.labels, key=lambda label: label != base):
        rewards = np.stack([grid.per_prompt(label, values) for values in best], axis=1)
        gains = np.full_like(rewards, math.nan)
        if base not in (None, label):
            gains = np.stack([grid.differences(label, base, values) for values in best], axis=1)
        triples = zip(counts, estimates(rewards, seed), estimates(gains, seed), strict=True)
        lines[label] = tuple(AtSamples(*triple) for triple in triples)
    return lines


def _after(samples: Sequence[Sequence | None], best: Sequence[Sequence | None], count: float) -> np.ndarray:
    """Each row's best reward after at most `count` samples, float64 [rows]; NaN where its first round is larger."""
    values = np.full(len(samples), math.nan)
    for row, (seen, traced) in enumerate(zip(samples, best, strict=True)):
        fits = sum(number <= count for number in seen or ())
        if fits and traced[fits - 1] is not None:
            values[row] = traced[fits - 1]
    return values


def budget_cells(lines: Mapping[str, Sequence[AtSamples]], base: str | None) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table, the label first."""
    labels = list(lines)
    if not labels:
        return [], []
    heads, columns = ["method"], [labels]
    for k, first in enumerate(lines[labels[0]]):
        heads.append(f"{first.samples:,.0f} samples")
        columns.append(list(with_intervals([lines[label][k].reward for label in labels])))
        if base is not None and len(labels) > 1:
            heads.append(f"vs {base}")
            columns.append(list(with_intervals([lines[label][k].gain for label in labels], sign=True)))
    return heads, [list(row) for row in zip(*columns, strict=True)]


NOTE = (
    "Best reward so far after so many samples a prompt, and its paired difference to the baseline after as many; "
    f"± is half the 95 % bootstrap interval over prompts ({NUM_RESAMPLES:,} resamples). A method that builds one "
    "response token by token has an unfinished one until its last round."
)


def budgets_markdown(lines: Mapping[str, Sequence[AtSamples]], base: str | None, dataset: str) -> str:
    heads, rows = budget_cells(lines, base)
    if not rows:
        return ""
    text = [f"**{dataset}**", "", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    text += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*text, "", NOTE, ""])
