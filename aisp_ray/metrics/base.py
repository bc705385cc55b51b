"""What a text metric is, one number per response, and what its mean over prompts is: an estimate with an interval.

Intervals are percentile bootstraps (Efron, 1979) with named randomness. The unit that is resampled is the prompt:
several seeds of one prompt are averaged before they come here, because they are not independent evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aisp_ray.rng import generator

NUM_RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 250  # resamples drawn under one name; part of the names, so changing it changes the third digit of intervals


class TextMetric(Protocol):
    """A measure of single responses. Its settings are a frozen dataclass, the `_target_` of a YAML in conf/metric.

    NaN stands for what is not defined: no response, an empty one, one that is too short. Never 0.
    """

    def compute(self, prompts: Sequence[str], responses: Sequence[str | None]) -> np.ndarray:
        """float64 [len(responses)]."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts and its 95 % percentile bootstrap interval."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    count: int = 0  # prompts that have a value

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def estimates(columns: np.ndarray, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> list[Estimate]:
    """One estimate per column of `columns`, float64 [prompts, columns] with NaN where a prompt has no value.

    Every column is resampled from its own present prompts. Columns that are present at the same number of prompts
    share their draws, so two methods' intervals move together. A column of fewer than 2 values has no interval.
    """
    values = np.asarray(columns, dtype=np.float64)
    present = np.isfinite(values)
    results: dict[int, Estimate] = {}
    for pattern in {present[:, c].tobytes() for c in range(values.shape[1])}:
        members = [c for c in range(values.shape[1]) if present[:, c].tobytes() == pattern]
        kept = values[present[:, members[0]]][:, members]  # [count, members]
        results |= dict(zip(members, _estimate(kept, seed, num_resamples), strict=True))
    return [results[c] for c in range(values.shape[1])]


def estimate(values: np.ndarray, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """The estimate of one column, float64 [prompts]."""
    return estimates(np.asarray(values, dtype=np.float64)[:, None], seed, num_resamples)[0]


def _estimate(kept: np.ndarray, seed: int, num_resamples: int) -> list[Estimate]:
    """Estimates of complete columns, [count, columns]."""
    count = len(kept)
    if count == 0:
        return [Estimate() for _ in range(kept.shape[1])]
    means = [math.fsum(column) / count for column in kept.T]
    if count == 1:
        return [Estimate(mean, count=1) for mean in means]
    drawn = resampled_means(kept, seed, num_resamples)  # [num_resamples, columns]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [Estimate(m, float(a), float(b), count) for m, a, b in zip(means, low, high, strict=True)]


def resampled_means(kept: np.ndarray, seed: int, num_resamples: int) -> np.ndarray:
    """Means of `num_resamples` resamples with replacement of the rows of `kept` [count, columns].

    Resamples are counted, not gathered: a [chunk, count] matrix of how often each row was drawn, times the values.
    """
    count = len(kept)
    chunks = []
    for start in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - start)
        draws = generator("bootstrap", seed, count, start).integers(0, count, size=(size, count))  # [size, count]
        draws += np.arange(size)[:, None] * count
        counts = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)
        chunks.append(counts.astype(np.float64) @ kept / count)
    return np.concatenate(chunks)
