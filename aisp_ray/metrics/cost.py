"""What a reward costs: samples needed to reach a target, and tokens a second."""

from __future__ import annotations

import math

import numpy as np


def samples_to_reach(samples: np.ndarray, best: np.ndarray, target: float) -> float:
    """The fewest samples after which `best` (best-so-far rewards, [iterations]) is at `target` or above.

    samples: [iterations], samples drawn after each iteration. NaN: never reached, or nothing to reach.
    """
    reached = np.flatnonzero(np.asarray(best, dtype=np.float64) >= target)
    return float(samples[reached[0]]) if reached.size and math.isfinite(target) else math.nan


def prompts_reached(samples: np.ndarray, best: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Over prompts with a target: the share that reached its own, and the median samples of those that did.

    samples, best: [prompts, iterations]; targets: [prompts], NaN where a prompt has none. (NaN, NaN) without any.
    """
    needed = [
        samples_to_reach(s, b, t) for s, b, t in zip(samples, best, targets, strict=True) if math.isfinite(t)
    ]  # fmt: skip
    reached = [number for number in needed if math.isfinite(number)]
    if not needed:
        return math.nan, math.nan
    return len(reached) / len(needed), float(np.median(reached)) if reached else math.nan


def rate(amounts: np.ndarray, seconds: np.ndarray) -> float:
    """Sum of amounts over sum of seconds, over rows that have both; NaN where no time was spent or measured."""
    amounts, seconds = np.asarray(amounts, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    both = np.isfinite(amounts) & np.isfinite(seconds)
    total = float(seconds[both].sum())
    return float(amounts[both].sum()) / total if total > 0 else math.nan
