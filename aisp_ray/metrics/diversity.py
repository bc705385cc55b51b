"""Diversity within a response: how little it repeats itself (Su et al., 2022, arXiv 2202.06417, section 4.1).

    rep_n = 1 - |different n-grams| / |n-grams|,        diversity = product over n = 2, 3, 4 of (1 - rep_n)

1 means that no n-gram occurs twice. The evaluations of ARGS (Khanov et al., 2024, arXiv 2402.01694) and RE-Control
(Kong et al., 2024, arXiv 2406.05954) divide by |n-grams| + 1, so a perfect response stays below 1 and gains with its
length; `plus_one: true` gives their form, to compare with their tables.

Differs from those papers: words are found by a regular expression (`_words.py`) where they use NLTK's tokenizer, and
a response without a word is NaN where theirs counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aisp_ray.metrics._words import num_unique_ngrams, words


@dataclass(frozen=True, slots=True)
class Diversity:
    """Settings of diversity."""

    plus_one: bool = False  # true: the +1 of the published evaluations' code in the denominator

    def compute(self, prompts: Sequence[str], responses: Sequence[str | None]) -> np.ndarray:
        """float64 [responses], in [0, 1]. NaN without words and, in the plain form, with fewer than 4 of them."""
        return np.array([diversity(words(text), self.plus_one) for text in responses], dtype=np.float64)


def diversity(tokens: list[str], plus_one: bool = False) -> float:
    """The product over n = 2, 3, 4 of unique n-grams over n-grams, of one token list."""
    if len(tokens) < (1 if plus_one else 4):
        return math.nan
    product = 1.0
    for n in (2, 3, 4):
        unique, total = num_unique_ngrams(tokens, n)
        product *= unique / (total + plus_one)
    return product
