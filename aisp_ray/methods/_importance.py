"""The density ratio that AISP's control cost stands for, shared by its variants."""

from __future__ import annotations

import numpy as np

from aisp_ray.types import Rollouts


def control_cost(rollouts: Rollouts, sigma: float, alpha: float) -> np.ndarray:
    """-log p(v)/q(v) of the live positions, prior p = N(alpha u, sigma^2 I), proposal q = N(u, sigma^2 I).

    = (1 - alpha) / sigma^2 * sum u.v - (1 - alpha^2) / (2 sigma^2) * sum |u|^2.  Returns float64 [n], nats.
    """
    inner = np.array([item.control_inner for item in rollouts.items], dtype=np.float64)  # [n]
    square = np.array([item.control_square for item in rollouts.items], dtype=np.float64)  # [n]
    return ((1 - alpha) * inner - 0.5 * (1 - alpha**2) * square) / sigma**2


def live_lengths(rollouts: Rollouts, horizon: int) -> tuple[int, ...]:
    """Controlled positions that each response really used."""
    return tuple(min(item.num_tokens, horizon) for item in rollouts.items)


def kl_info(rollouts: Rollouts, sigma: float) -> dict[str, float]:
    """Two KL estimators of one round, nats; see `metrics/kl.py` for what they are and the third one.

    kl_gaussian: |U|^2 / (2 sigma^2), KL(N(U, sigma^2 I) | N(0, sigma^2 I)) over the horizon. NaN at sigma 0.
    kl_token_steered: mean over particles of the summed token KL(controlled | base) on their own prefixes. The
    particles' noise is part of the control.
    """
    token_kl = np.array([item.token_kl for item in rollouts.items], dtype=np.float64)
    gaussian = rollouts.control_norm**2 / (2 * sigma**2) if sigma > 0 else float("nan")
    return {"kl_gaussian": gaussian, "kl_token_steered": float(token_kl.mean())}
