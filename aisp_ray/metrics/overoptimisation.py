"""Does a gain in the optimised reward carry over to a reward that the search did not see (Gao et al., 2023,
arXiv 2210.10760)? A search that exploits its reward model gains there and loses here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aisp_ray.metrics.base import Estimate, estimates

_RESAMPLES = 1000  # of the intervals here: they are looked at, the table's are quoted
_BINS = 5


@dataclass(frozen=True, slots=True)
class Transfer:
    """A method against a baseline, on the prompts where both have both rewards."""

    optimised: Estimate  # paired difference of the reward that was searched with
    held_out: Estimate  # paired difference of the other one, its own units
    rank_correlation: float  # Spearman's, of the two differences over prompts; NaN with fewer than 3
    bins: tuple[tuple[float, float, int], ...]  # (mean optimised, mean held-out difference, prompts), gains rising


def transfer(optimised: np.ndarray, held_out: np.ndarray, seed: int = 0) -> Transfer:
    """From paired differences over prompts, float64 [prompts] each, NaN where a prompt lacks one."""
    both = np.isfinite(optimised) & np.isfinite(held_out)
    pairs = np.stack([optimised[both], held_out[both]], axis=1)  # [kept, 2]
    first, second = estimates(pairs, seed, _RESAMPLES)
    order = pairs[np.argsort(pairs[:, 0], kind="stable")]
    parts = [part for part in np.array_split(order, _BINS) if len(part)] if len(pairs) >= 2 * _BINS else []
    bins = tuple((float(part[:, 0].mean()), float(part[:, 1].mean()), len(part)) for part in parts)
    return Transfer(first, second, rank_correlation(pairs[:, 0], pairs[:, 1]), bins)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation with mid-ranks for ties; NaN for fewer than 3 pairs or a constant side."""
    if len(x) < 3:
        return math.nan
    a, b = _ranks(x), _ranks(y)
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
