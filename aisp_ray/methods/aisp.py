"""AISP: adaptive importance sampling on pre-logits (Kanai et al., 2025, arXiv 2510.26219).

Each iteration draws n particles v^i ~ N(u, sigma^2 I) over the control horizon, decodes one response under each,
and moves the mean:  w_i = softmax_i(r_i / lambda - (1 - alpha) / sigma^2 * sum_t u_t . v_t^i),  u <- sum_i w_i v^i.
The best response seen over all iterations is returned. As lambda -> 0 with kappa = 1 this is best-of-n over perturbed
decodes. The mean is carried as its weight log (`controls.WeightLog`), never as a tensor.

Differs from the paper: positions after a particle's end do not touch its response, so they are left out of its
cost and of the update. The cost is then the exact density ratio of the live positions, which adds the term
(1 - alpha^2) / (2 sigma^2) * sum_live |u_t|^2: a constant when all particles live equally long (the paper's case), and
without which short responses would be favoured by hundreds of nats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.methods._importance import control_cost, kl_info, live_lengths
from aisp_ray.methods._stopping import expected_gain
from aisp_ray.methods.base import Info, State, best_candidate, check_horizon, check_rounds, check_sampling, require
from aisp_ray.types import Prompt, Proposal, Rollouts, Sampling, Scores
from aisp_ray.weights import effective_sample_size, importance_weights


@dataclass(frozen=True, slots=True)
class AispState(State):
    """`State` with the weight log that describes the mean."""

    log: WeightLog = WeightLog()


@dataclass(frozen=True, slots=True)
class Aisp:
    """Settings of AISP; paper symbols in brackets."""

    n: int = 16  # particles an iteration [n]
    kappa: int = 16  # iterations [kappa]
    sigma: float = 0.7071  # standard deviation of the noise [sigma]; the paper quotes sigma^2 = 0.5
    reward_temperature: float = 0.3  # [lambda], reward units
    alpha: float = 0.999  # [alpha] in [0, 1]; 1 drops the control cost, 0 is the exact ratio to N(0, sigma^2 I)
    horizon: int = 128  # [tau] controlled positions; later ones are decoded without control
    temperature: float = 0.0  # 0 decodes greedily under the perturbation, above 0 samples
    top_p: float = 1.0  # nucleus mass when temperature is above 0
    adapt: bool = True  # false: the mean stays 0 (the noise-only ablation)
    early_stop: float = 0.0  # stop when all remaining rounds are expected to gain less, reward units; 0: never
    stop_at: float | None = None  # stop when the best reward is at least this, reward units; null: never
    diagnostics: bool = False  # also record kl_gaussian and kl_token_steered, nats; one more head pass a token

    def __post_init__(self) -> None:
        check_rounds(self.n, self.kappa, "particle", "iteration")
        require(self.sigma >= 0, f"sigma is {self.sigma}; it is a standard deviation, 0 or above")
        require(self.sigma > 0 or not self.adapt, "sigma is 0: nothing to adapt; set adapt=false for the plain decode")
        require(self.reward_temperature > 0, f"reward_temperature is {self.reward_temperature}; it must be above 0")
        require(0 <= self.alpha <= 1, f"alpha is {self.alpha}; it lies in [0, 1]")
        check_horizon(self.horizon)
        require(self.early_stop >= 0, f"early_stop is {self.early_stop}; it is a reward, 0 never stops")
        require(self.stop_at is None or np.isfinite(self.stop_at), f"stop_at is {self.stop_at}; give a reward or null")
        require(self.early_stop == 0 or self.n > 1, "early_stop needs n above 1: one reward has no spread")
        check_sampling(self.temperature, self.top_p)

    @property
    def num_samples(self) -> int:
        return self.n * self.kappa

    @property
    def num_iterations(self) -> int:
        return self.kappa

    def init(self, prompt: Prompt, seed: int) -> AispState:
        return AispState(prompt.prompt_id, seed)

    def ask(self, state: AispState) -> Proposal:
        control = OpenLoop(horizon=self.horizon, mean=state.log if state.log.entries else None, sigma=self.sigma)
        want = frozenset({"token_kl"}) if self.diagnostics else frozenset()
        return Proposal(state.iteration, self.n, control, Sampling(self.temperature, self.top_p), want=want)

    def tell(self, state: AispState, rollouts: Rollouts, scores: Scores) -> tuple[AispState, Info]:
        iteration = state.iteration + 1
        best = best_candidate(state.best, rollouts, scores)
        info = kl_info(rollouts, self.sigma) if self.diagnostics else {}
        done = iteration >= self.kappa
        if self.early_stop > 0 and best is not None:
            gain = expected_gain(scores.rewards, best.reward, (self.kappa - iteration) * self.n)
            done = done or gain < self.early_stop
            info = {**info, "expected_gain": gain}
        if self.stop_at is not None and best is not None:
            done = done or best.reward >= self.stop_at
        carried = replace(state, iteration=iteration, done=done, best=best)
        if not self.adapt or not np.isfinite(scores.rewards).any():
            return carried, info
        cost = control_cost(rollouts, self.sigma, self.alpha)
        weights = importance_weights(scores.rewards, self.reward_temperature, cost)
        entry = WeightEntry(
            iteration=state.iteration,
            weights=tuple(weights.tolist()),
            lengths=live_lengths(rollouts, self.horizon),
            sigma=self.sigma,
        )
        log = WeightLog((*state.log.entries, entry))
        return replace(carried, log=log), {"ess": effective_sample_size(weights), **info}
