"""Length of a response, in words. Learned rewards often grow with length, so a gain is read beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aisp_ray.metrics._words import words


@dataclass(frozen=True, slots=True)
class Length:
    """Settings of length: none."""

    def compute(self, prompts: Sequence[str], responses: Sequence[str | None]) -> np.ndarray:
        """float64 [responses]; NaN for a response without a word: an empty answer is missing, not short."""
        return np.array([float(len(words(text))) or math.nan for text in responses], dtype=np.float64)
