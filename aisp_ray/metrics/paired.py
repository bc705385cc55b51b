"""A method against a baseline on the same prompts: mean difference, and how many prompts it wins, ties and loses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aisp_ray.metrics.base import Estimate, estimate

TIE = 1e-6  # rewards closer than this are a tie: the same response scored in two batches differs in its last bits


@dataclass(frozen=True, slots=True)
class Paired:
    """A paired comparison over shared prompts; `difference` is method minus baseline."""

    difference: Estimate
    wins: int = 0
    ties: int = 0
    losses: int = 0

    @property
    def win_rate(self) -> float:
        """Wins plus half of the ties over all, in [0, 1]; NaN without shared prompts."""
        total = self.wins + self.ties + self.losses
        return (self.wins + 0.5 * self.ties) / total if total else math.nan


def paired(differences: np.ndarray, seed: int = 0) -> Paired:
    """The comparison from per-prompt differences, float64 [prompts], NaN where a prompt is not shared."""
    kept = np.asarray(differences, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    return Paired(
        estimate(kept, seed),
        wins=int((kept > TIE).sum()),
        ties=int((np.abs(kept) <= TIE).sum()),
        losses=int((kept < -TIE).sum()),
    )
