"""When a trial stops early: prompts are seen in rungs, and every trial sees the same prompts with the same noise.

Rules decide for a whole batch of trials at a rung's end, so what they decide does not depend on which trial ran first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aisp_ray.config import suggest
from aisp_ray.tune.trial import Trial

RULES = ("halving", "race", "none")
_FACTOR = 2  # each rung has this many times the prompts of the one before, and 1 in this many trials survives it


def rung_sizes(num_prompts: int, first: int) -> tuple[int, ...]:
    """Prompts seen at the end of each rung: first, twice as many, ..., num_prompts."""
    sizes = []
    size = first
    while size < num_prompts:
        sizes.append(size)
        size *= _FACTOR
    return (*sizes, num_prompts)


def survivors(rule: str, batch: Sequence[Trial], seen: Sequence[Trial], size: int) -> list[Trial]:
    """Those of `batch` that continue after `size` prompts.

    seen: all trials that have so many, the batch's among them, the preset first.
    """
    if rule == "none":
        return list(batch)
    if rule == "halving":
        return _halve(batch, seen, size)
    if rule == "race":
        return _race(batch, seen, size)
    raise ValueError(f"stop={rule}: there is no such rule.{suggest(rule, RULES)}")


def _halve(batch: Sequence[Trial], seen: Sequence[Trial], size: int) -> list[Trial]:
    """Successive halving (Li et al., 2018, arXiv 1810.05934, ASHA): the best half of all that came this far.

    Differs from the paper: decided for the batch together, and at least one place is given.
    """
    means = sorted(filter(math.isfinite, (trial.score(seen[0], size) for trial in seen)), reverse=True)
    if not means:
        return []
    bar = means[max(1, math.ceil(len(means) / _FACTOR)) - 1]
    return [trial for trial in batch if trial.score(seen[0], size) >= bar]


def _race(batch: Sequence[Trial], seen: Sequence[Trial], size: int) -> list[Trial]:
    """A race on paired differences (Maron and Moore, 1994; F-Race, Birattari et al., 2002).

    A trial continues unless it trails the leader by more than one standard error of their paired difference.
    """
    known = [trial for trial in seen if math.isfinite(trial.score(seen[0], size))]
    if not known:
        return []
    leader = max(known, key=lambda trial: (trial.score(seen[0], size), -trial.number))
    kept = []
    for trial in batch:
        gap = trial.paired(leader, size)
        if trial is leader or (gap.size and gap.mean() + _standard_error(gap) >= 0):
            kept.append(trial)
    return kept


def _standard_error(values: np.ndarray) -> float:
    """Infinite for fewer than two values: nothing is known of their spread."""
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.inf
