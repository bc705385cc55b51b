"""When more rounds are not worth their samples.

`PandoraBox` is Kalayci, Raman and Dughmi, "Optimal stopping vs best-of-N for inference time optimization", arXiv
2510.01394, read in the authors' code (yhkalayci/adaptive-BoN): each draw opens a box, and one stops as Weitzman does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_POINTS = 200  # of the integral
_TAIL = 10.0  # standard deviations above which nothing is expected

MIN_DRAWS = 20  # before which PandoraBox says nothing
_DELTA = 0.05  # 1 - confidence of its bounds
_LEFT_OUT = {"accept_at": 3.0, "accept_cost": 5.0}  # the most that N draws may bring is the 1 - this / N quantile


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


@dataclass(frozen=True, slots=True)
class PandoraBox:
    """What the draws so far say about the tail of v = exp(reward), which is taken to be exponential above the median.

    The acceptance of a draw is v / (v + most), the chance in Bradley and Terry's model that it is preferred to the best
    of all draws that the budget allows: rewards of different prompts become comparable. It is below 1/2 for all but
    the luckiest draws.
    """

    median: float  # of v, in units of the highest v so far
    excess: float  # mean of v - median where v is at least the median; same units
    num_seen: int

    @classmethod
    def of(cls, rewards: Sequence[float]) -> PandoraBox | None:
        """None before MIN_DRAWS rewards are there. Those that are not finite do not count."""
        r = np.asarray(rewards, dtype=np.float64)
        r = np.sort(r[np.isfinite(r)])
        if r.size < MIN_DRAWS:
            return None
        upper = np.exp(r[r.size // 2 :] - r[-1])
        return cls(float(upper[0]), max(float(upper.mean() - upper[0]), 1e-4 * math.exp(min(-r[-1], 700.0))), r.size)

    def acceptance(self, num_draws: int) -> float:
        """Of the best so far, against an upper bound on the best of num_draws."""
        return 1 / (1 + self._most(num_draws / _LEFT_OUT["accept_at"], 1.0))

    def gain(self, num_draws: int) -> float:
        """By how much one more draw should raise the acceptance, against a lower bound on the best of num_draws.

        E[(A(X) - A(1))+] of A(x) = x / (x + most) and X - median ~ Exp(mean excess): the integral of A' P(X > x) from 1
        on. Weitzman's rule stops once it is below the cost of a draw: then A(1) is above the fair cap.
        """
        most = self._most(num_draws / _LEFT_OUT["accept_cost"], -1.0)
        x = 1 + self.excess * np.linspace(0.0, 40.0, 4001)
        return float(np.trapezoid(most / (x + most) ** 2 * np.exp((self.median - x) / self.excess), x))

    def _most(self, odds: float, side: float) -> float:
        width = math.sqrt(math.log(self.num_seen) * -math.log(_DELTA) / self.num_seen)
        return self.median + math.log(max(odds, 1.0)) * self.excess * (1 + side * width)
