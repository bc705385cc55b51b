"""AISP: adaptive importance sampling on pre-logits.

Kanai, Yoshida, Takahashi, Kuroki and Hashimoto, "Test-time reward-guided alignment of language models by importance
sampling on pre-logit space", arXiv 2510.26219, third version of 3 June 2026.

Each iteration draws n particles v^i ~ N(u, sigma^2 I) over the control horizon, decodes one response under each,
and moves the mean:  w_i = softmax_i(r_i / lambda - (1 - alpha) / sigma^2 * sum_t u_t . v_t^i),  u <- sum_i w_i v^i.
The best response seen over all iterations is returned. As lambda -> 0 with kappa = 1 this is best-of-n over perturbed
decodes. The mean is carried as its weight log (`controls/weight_log.py`), never as a tensor.

Differs from the paper: positions after a particle's end do not touch its response, so they are left out of its
cost and of the update. The cost is then the exact density ratio of the live positions, which adds the term
(1 - alpha^2) / (2 sigma^2) * sum_live |u_t|^2: a constant when all particles live equally long (the paper's case), and
without which short responses would be favoured by hundreds of nats.

Beyond the paper, all off by default:

- `ess_fraction` finds lambda in each iteration such that the effective sample size is a share of n (an adaptive
  temperature, as in tempered sequential Monte Carlo, Jasra et al., 2011). A reward that is scaled or shifted then gives
  the same weights.
- `sigma_decay` lets the noise shrink or grow along the response: decay^t v_t is added, all else lives in the
  coordinates v.
- `base_rounds` begins with draws from the policy itself, which count for the best response only.
- `final_draws` ends with draws under the last mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from aisp_ray.methods._importance import AispState, ImportanceSampled
from aisp_ray.methods.base import Info, require
from aisp_ray.types import Proposal, Rollouts, Sampling, Scores


@dataclass(frozen=True, kw_only=True)
class Aisp(ImportanceSampled):
    """Settings of AISP."""

    sigma_decay: float = 1.0  # sigma's factor from a position to the next; 0.98 leaves 0.27 of it after 64 positions
    base_rounds: int = 0  # first iterations that are drawn from the policy without control
    base_temperature: float | None = None  # sampling temperature of base_rounds, above 0
    final_draws: int = 0  # responses drawn under the last mean after the kappa iterations; part of the budget

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sigma_decay > 0, f"sigma_decay is {self.sigma_decay}; it is a factor above 0, 1 keeps sigma")
        require(0 <= self.base_rounds < self.kappa, f"base_rounds is {self.base_rounds}; it lies in [0, kappa)")
        warm = self.base_temperature
        require((self.base_rounds > 0) == (warm is not None), "base_rounds and base_temperature go together")
        require(warm is None or warm > 0, f"base_temperature is {warm}; it must be above 0")
        require(self.final_draws >= 0, f"final_draws is {self.final_draws}; it is a number of responses, 0 or above")

    @property
    def num_samples(self) -> int:
        return self.n * self.kappa + self.final_draws

    @property
    def num_iterations(self) -> int:
        return self.kappa + (self.final_draws > 0)

    def ask(self, state: AispState) -> Proposal:
        if state.iteration < self.base_rounds:
            return Proposal(state.iteration, self.n, sampling=Sampling(self.base_temperature or 1.0), want=self.needed)
        n = self.n if state.iteration < self.kappa else self.final_draws
        control = self.control(state, self.sigma_decay)
        return Proposal(state.iteration, n, control, self.sampling, want=self.want)

    def tell(self, state: AispState, rollouts: Rollouts, scores: Scores) -> tuple[AispState, Info]:
        if not self.base_rounds <= state.iteration < self.kappa:
            return self.advance(state, rollouts, scores)
        log, update = self.updated(state.log, rollouts, scores)
        carried, info = self.advance(state, rollouts, scores, log=log)
        return carried, {**update, **info}
