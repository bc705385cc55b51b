"""Distinct-n: different n-grams over n-grams of a response (Li et al., 2016, arXiv 1510.03055), here per response.

Differs from the paper: it divides the different n-grams of all responses together by the number of words; that number
falls with the size of the set, so sets of different size do not compare. Here every response has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aisp_ray.metrics._words import num_unique_ngrams, words


@dataclass(frozen=True, slots=True)
class Distinct:
    """Settings of distinct-n."""

    n: int = 2  # words in an n-gram

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}; an n-gram has at least 1 word")

    def compute(self, prompts: Sequence[str], responses: Sequence[str | None]) -> np.ndarray:
        """float64 [responses], in (0, 1]; NaN for a response of fewer than n words."""
        counts = [num_unique_ngrams(words(text), self.n) for text in responses]
        return np.array([unique / total if total else math.nan for unique, total in counts], dtype=np.float64)
