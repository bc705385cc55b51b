"""Importance weights in float64. NaN rewards (failed particles) get weight 0 and never win."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def importance_weights(
    rewards: ArrayLike, reward_temperature: float, control_cost: ArrayLike | None = None
) -> np.ndarray:
    """Self-normalised importance weights, w_i = softmax_i(r_i / lambda - cost_i), Kanai et al., arXiv 2510.26219.

    rewards: [n], reward units. reward_temperature: the paper's lambda, reward units, > 0. control_cost: [n], nats.
    Returns float64 [n] that sums to 1; all NaN if no reward is finite.
    """
    if not reward_temperature > 0:
        raise ValueError(f"reward_temperature is {reward_temperature}; it must be above 0 (reward units)")
    r = np.asarray(rewards, dtype=np.float64)
    cost = np.zeros_like(r) if control_cost is None else np.asarray(control_cost, dtype=np.float64)
    finite = np.isfinite(r) & np.isfinite(cost)
    if not finite.any():
        return np.full_like(r, math.nan)
    # the maximum reward leaves before the division, so a tiny lambda cannot overflow
    shifted = np.where(finite, r - r[finite].max(), 0.0) / reward_temperature - np.where(finite, cost, 0.0)
    shifted = np.where(finite, shifted, -np.inf)
    w = np.exp(shifted - shifted[finite].max())
    return w / w.sum()


def effective_sample_size(weights: ArrayLike) -> float:
    """ESS = 1 / sum_i w_i^2 of normalised weights (Kong, 1992), in particles; NaN for NaN weights."""
    w = np.asarray(weights, dtype=np.float64)
    return float(1.0 / np.square(w).sum())


def temperature_for_ess(rewards: ArrayLike, target: float, control_cost: ArrayLike | None = None) -> float:
    """The reward temperature whose weights have `target` effective samples, by bisection on its logarithm.

    ESS rises with the temperature. A target at or above the number of finite rewards gives a huge temperature
    (uniform weights); one at or below the number of tied winners gives a tiny one. Returns reward units.
    """
    r = np.asarray(rewards, dtype=np.float64)
    r = r[np.isfinite(r)]
    spread = float(r.max() - r.min()) if r.size else 0.0
    if spread == 0.0:
        return 1.0  # all rewards are equal: every temperature gives the same weights
    low, high = math.log(spread * 1e-6), math.log(spread * 1e6)
    for _ in range(60):
        middle = 0.5 * (low + high)
        if effective_sample_size(importance_weights(rewards, math.exp(middle), control_cost)) < target:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))


def systematic(weights: ArrayLike, count: int, uniform: float) -> list[int]:
    """`count` indices with expected counts count * w_i / sum w, each within 1 of it (systematic resampling).

    uniform: a draw from [0, 1). Weights need not be normalised; an index of weight 0 is never drawn.
    """
    w = np.asarray(weights, dtype=np.float64)
    edges = np.cumsum(w)
    points = (uniform + np.arange(count)) / count * edges[-1]
    last = int(np.flatnonzero(w)[-1])
    return np.minimum(np.searchsorted(edges, points, side="right"), last).tolist()


def log_mean_exp(values: ArrayLike) -> float:
    """log(mean_i exp(v_i)) without overflow; -inf when every v_i is."""
    v = np.asarray(values, dtype=np.float64)
    top = float(v.max())
    return top if math.isinf(top) else top + math.log(float(np.exp(v - top).mean()))
