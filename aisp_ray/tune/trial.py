"""One setting under trial: what it is and what it scored so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aisp_ray.methods.base import Method


@dataclass(eq=False)
class Trial:
    """A setting and its values on the first prompts, in prompt order. Trial 0 is the preset."""

    number: int
    settings: Mapping[str, Any]  # searched keys -> values
    method: Method | None  # None: the method refuses the settings
    state: str = "running"  # running | complete: all prompts | stopped: dropped at a rung | invalid
    reason: str | None = None  # why it is invalid
    values: list[float] = field(default_factory=list)  # objective per prompt; NaN where there is none

    @property
    def num_seen(self) -> int:
        return len(self.values)

    @property
    def num_failed(self) -> int:
        return sum(not math.isfinite(value) for value in self.values)

    def mean(self, size: int | None = None) -> float:
        """Mean of the finite values of the first `size` prompts; NaN without any."""
        values = np.asarray(self.values[:size], dtype=np.float64)
        values = values[np.isfinite(values)]
        return float(values.mean()) if values.size else math.nan

    def score(self, preset: Trial, size: int | None = None) -> float:
        """What trials are ranked by: the mean over those of the first `size` prompts on which the preset has a value.

        NaN where this one has none on one of them: no setting may win by failing where others do badly.
        """
        size = min(self.num_seen, preset.num_seen) if size is None else size
        values, known = (np.asarray(trial.values[:size], dtype=np.float64) for trial in (self, preset))
        compared = values[np.isfinite(known)] if np.isfinite(known).any() else values
        return float(compared.mean()) if compared.size else math.nan

    def paired(self, other: Trial, size: int | None = None) -> np.ndarray:
        """Differences to another trial on the prompts both have a value for, float64."""
        size = min(self.num_seen, other.num_seen) if size is None else size
        gap = np.asarray(self.values[:size], dtype=np.float64) - np.asarray(other.values[:size], dtype=np.float64)
        return gap[np.isfinite(gap)]
