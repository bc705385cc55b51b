"""What AISP and its variants share: the settings of the noise and the weights, and one update of the mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.methods.base import Iterative, State, check_horizon, check_sampling, check_top_p, require
from aisp_ray.types import CONTROL, Rollouts, Sampling, Scores
from aisp_ray.weights import effective_sample_size, importance_weights, temperature_for_ess


@dataclass(frozen=True, slots=True)
class AispState(State):
    """`State` with the weight log that describes the mean."""

    log: WeightLog = WeightLog()


PRELOGITS, LOGITS = "prelogits", "logits"

AnyAispState = TypeVar("AnyAispState", bound=AispState)


@dataclass(frozen=True, kw_only=True)
class ImportanceSampled(Iterative):
    """Settings of AISP's noise and weights; paper symbols in brackets. `n` is the paper's [n], `kappa` its [kappa]."""

    sigma: float = 0.7071  # standard deviation of the noise [sigma]; the paper quotes sigma^2 = 0.5
    sigma_scale: str = PRELOGITS  # what sigma measures: prelogits (the paper), or logits: sigma 1 moves them by 1
    reward_temperature: float | None = 0.3  # [lambda], reward units; null: set by ess_fraction
    ess_fraction: float | None = None  # lambda is set so that ESS = this share of n, in (0, 1); null: lambda is fixed
    alpha: float = 0.999  # [alpha] in [0, 1]; 1 drops the control cost, 0 is the exact ratio to N(0, sigma^2 I)
    horizon: int | None = None  # [tau] controlled positions, later ones are decoded without control; null: all
    temperature: float = 0.0  # 0 decodes greedily under the perturbation, above 0 samples
    top_p: float = 1.0  # nucleus mass when temperature is above 0
    support_top_p: float = 1.0  # below 1: only tokens in the uncontrolled policy's nucleus of this mass (T = 1)
    adapt: bool = True  # false: the mean stays 0 (the noise-only ablation)
    diagnostics: bool = False  # also record kl_gaussian and kl_token_steered, nats; one more head pass a token

    state_class = AispState

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sigma >= 0, f"sigma is {self.sigma}; it is a standard deviation, 0 or above")
        check_sigma_scale(self.sigma_scale)
        require(self.sigma > 0 or not self.adapt, "sigma is 0: nothing to adapt; set adapt=false for the plain decode")
        fixed, share = self.reward_temperature, self.ess_fraction
        require(fixed is not None or share is not None, "reward_temperature is null; set it, or ess_fraction")
        require(fixed is None or share is None, "ess_fraction sets lambda; set reward_temperature=null beside it")
        require(fixed is None or fixed > 0, f"reward_temperature is {fixed}; it must be above 0")
        require(share is None or 0 < share < 1, f"ess_fraction is {share}; it is a share of n in (0, 1)")
        require(0 <= self.alpha <= 1, f"alpha is {self.alpha}; it lies in [0, 1]")
        check_horizon(self.horizon)
        check_sampling(self.temperature, self.top_p)
        check_top_p(self.support_top_p, "support_top_p")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, support_top_p=self.support_top_p)

    @property
    def want(self) -> frozenset[str]:
        return self.needed | ({"token_kl"} if self.diagnostics else set())

    @property
    def asks_for(self) -> frozenset[str]:
        return self.want | {CONTROL}

    def control(self, state: AispState, decay: float = 1.0) -> OpenLoop:
        """v_t ~ N(u_t, sigma^2 I) at positions below the horizon, u the mean of this state."""
        mean = state.log if state.log.entries else None
        return OpenLoop(self.horizon, mean, self.sigma, decay, scale_of(self.sigma_scale))

    def updated(
        self, log: WeightLog, rollouts: Rollouts, scores: Scores, start: int = 0
    ) -> tuple[WeightLog, dict[str, float]]:
        """The log after u <- sum_i w_i v^i at positions from `start` on, and its info; as it is without any reward."""
        info = kl_info(rollouts, self.sigma) if self.diagnostics else {}
        if not self.adapt or not np.isfinite(scores.rewards).any():
            return log, info
        cost = control_cost(rollouts, self.sigma, self.alpha)
        if self.ess_fraction is None:
            reward_temperature = float(self.reward_temperature or math.nan)
            found: dict[str, float] = {}
        else:
            reward_temperature = temperature_for_ess(scores.rewards, max(1.0, self.ess_fraction * self.n), cost)
            found = {"reward_temperature": reward_temperature}
        weights = importance_weights(scores.rewards, reward_temperature, cost)
        entry = WeightEntry(
            iteration=rollouts.iteration,
            weights=tuple(weights.tolist()),
            lengths=live_lengths(rollouts, self.horizon),
            sigma=self.sigma,
            start=start,
        )
        return WeightLog((*log.entries, entry)), {"ess": effective_sample_size(weights), **found, **info}


def check_sigma_scale(sigma_scale: str) -> None:
    """Raise ValueError for what is no `sigma_scale`."""
    known = (PRELOGITS, LOGITS)
    require(sigma_scale in known, f"sigma_scale is {sigma_scale!r}; it is one of {', '.join(known)}")


def scale_of(sigma_scale: str) -> float | None:
    """`OpenLoop.scale` of a `sigma_scale`."""
    return None if sigma_scale == LOGITS else 1.0


def control_cost(rollouts: Rollouts, sigma: float, alpha: float) -> np.ndarray:
    """-log p(v)/q(v) of the live positions, prior p = N(alpha u, sigma^2 I), proposal q = N(u, sigma^2 I).

    = (1 - alpha) / sigma^2 * sum u.v - (1 - alpha^2) / (2 sigma^2) * sum |u|^2.  Returns float64 [n], nats.
    """
    inner = np.array([item.control_inner for item in rollouts.items], dtype=np.float64)  # [n]
    square = np.array([item.control_square for item in rollouts.items], dtype=np.float64)  # [n]
    return ((1 - alpha) * inner - 0.5 * (1 - alpha**2) * square) / sigma**2


def live_lengths(rollouts: Rollouts, horizon: int | None) -> tuple[int, ...]:
    """Controlled positions that each response really used."""
    return tuple(item.num_tokens if horizon is None else min(item.num_tokens, horizon) for item in rollouts.items)


def kl_info(rollouts: Rollouts, sigma: float) -> dict[str, float]:
    """Two KL estimators of one iteration, nats; see `metrics/kl.py` for what they are and the third one.

    kl_gaussian: |U|^2 / (2 sigma^2), KL(N(U, sigma^2 I) | N(0, sigma^2 I)) over the horizon. NaN at sigma 0.
    kl_token_steered: mean over particles of the summed token KL(controlled | base) on their own prefixes. The
    particles' noise is part of the control.
    """
    token_kl = np.array([item.token_kl for item in rollouts.items], dtype=np.float64)
    gaussian = rollouts.control_norm**2 / (2 * sigma**2) if sigma > 0 else float("nan")
    return {"kl_gaussian": gaussian, "kl_token_steered": float(token_kl.mean())}
