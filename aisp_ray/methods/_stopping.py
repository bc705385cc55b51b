"""When more rounds are not worth their samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_POINTS = 200  # of the integral
_TAIL = 10.0  # standard deviations above which nothing is expected


def expected_gain(rewards: Sequence[float], best: float, remaining: int) -> float:
    """By how much the highest of `remaining` more draws is expected to exceed `best`, reward units.

    The draws are taken to be normal with mean and standard deviation of `rewards`, one round's finite rewards:
    E[(max_m R - best)+] = s * integral from z to infinity of 1 - Phi(t)^m dt, z = (best - mean) / s (the expected
    improvement of Mockus, 1978, for the best of m draws). A search whose mean still rises gains more than that.
    NaN for fewer than two finite rewards.
    """
    r = np.asarray(rewards, dtype=np.float64)
    r = r[np.isfinite(r)]
    if r.size < 2 or not math.isfinite(best):
        return math.nan
    if remaining <= 0:
        return 0.0
    return float(expected_gains(float(r.mean()), float(r.std(ddof=1)), best, [remaining])[0])


def expected_gains(mean: float, spread: float, best: float, counts: Sequence[int]) -> np.ndarray:
    """The same for normal draws of this mean and standard deviation, for each number of them; float64 [counts]."""
    m = np.asarray(counts, dtype=np.float64)[:, None]  # [counts, 1]
    if spread <= 1e-9 * max(1.0, abs(mean)):
        return np.full(len(m), max(0.0, mean - best))
    z = (best - mean) / spread
    if z >= _TAIL:
        return np.zeros(len(m))
    t = np.linspace(z, _TAIL, _POINTS)
    above = np.array([0.5 * math.erfc(x / math.sqrt(2.0)) for x in t])  # 1 - Phi(t)
    # 1 - Phi^m without cancellation in the tail
    exceeds = -np.expm1(m * np.log1p(-np.minimum(above, 1 - 1e-16)))  # [counts, points]
    return spread * np.trapezoid(exceeds, t, axis=1)
