"""Are pre-logits Gaussian? AISP's prior says so of the perturbation; this looks at the pre-logits themselves.

Asked for with `want={"prelogits"}`, [rows, d] of one position over many responses, or of all positions together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aisp_ray.rng import generator


@dataclass(frozen=True, slots=True)
class Gaussianity:
    """Departures from a Gaussian; 0 for each in the limit of many Gaussian rows."""

    skewness: float  # root mean square over projections of the third standardised moment
    excess_kurtosis: float  # mean over projections of the fourth standardised moment, minus 3
    kolmogorov_smirnov: float  # mean over projections of the largest distance of the two distribution functions
    critical_distance: float  # what kolmogorov_smirnov of one projection exceeds in 5 % of Gaussian cases


_NUM_PROJECTIONS = 64


def gaussianity(prelogits: np.ndarray) -> Gaussianity:
    """Moments and Kolmogorov-Smirnov distance of random one-dimensional projections, [rows, d] -> `Gaussianity`.

    A vector is Gaussian exactly when all its projections are. Projections are standardised by their own mean and
    deviation, so the critical distance is Lilliefors' (0.886 / sqrt(rows) at 5 %). Every call uses the same
    directions.

    Raises:
        ValueError: fewer than 8 rows, or rows that do not vary.
    """
    rows, dim = prelogits.shape
    if rows < 8:
        raise ValueError(f"{rows} rows are too few to judge a distribution; give at least 8")
    directions = generator(0, "gaussianity").standard_normal((dim, _NUM_PROJECTIONS))
    x = prelogits.astype(np.float64) @ directions  # [rows, projections]
    deviation = x.std(0)
    if not (deviation > 0).all():
        raise ValueError("the pre-logits do not vary over rows")
    x = np.sort((x - x.mean(0)) / deviation, axis=0)
    cdf = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    ranks = np.arange(rows)[:, None]
    distance = np.maximum(np.abs(cdf - ranks / rows), np.abs(cdf - (ranks + 1) / rows)).max(0)
    return Gaussianity(
        skewness=float(np.sqrt(np.square((x**3).mean(0)).mean())),
        excess_kurtosis=float((x**4).mean() - 3),
        kolmogorov_smirnov=float(distance.mean()),
        critical_distance=0.886 / math.sqrt(rows),
    )
