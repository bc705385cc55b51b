"""What a text metric is, one number per response, and what its mean over prompts is: an estimate with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from aisp_ray.metrics._bootstrap import NUM_RESAMPLES, Estimate, estimate, estimates

__all__ = ["NUM_RESAMPLES", "Estimate", "TextMetric", "estimate", "estimates"]


class TextMetric(Protocol):
    """A measure of single responses. Its settings are a frozen dataclass, the `_target_` of a YAML in conf/metric.

    NaN stands for what is not defined: no response, an empty one, one that is too short. Never 0.
    """

    def compute(self, prompts: Sequence[str], responses: Sequence[str | None]) -> np.ndarray:
        """float64 [len(responses)]."""
