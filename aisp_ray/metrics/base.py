"""What a text metric is: one number per response, NaN where the response has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TextMetric(Protocol):
    """A measure of single responses. Its settings are a frozen dataclass, the `_target_` of a YAML in conf/metric."""

    @property
    def label(self) -> str:
        """A few words for a table's head."""

    def compute(self, prompts: Sequence[str], responses: Sequence[str | None]) -> np.ndarray:
        """float64 [len(responses)]; NaN where the measure is not defined (no response, an empty one, too short)."""
