"""Particle filtering over blocks (Puri, Sudalairaj, Xu, Xu and Srivastava, 2025, arXiv 2502.01618).

n responses grow block by block. After each block an unfinished response's reward weighs it, and when the effective
sample size falls below a share of n, the responses are resampled: good ones are continued several times, bad ones are
dropped. Finished responses stay, keep their weight and may be copied. With reward r_k after block k and r_0 = 0,

    w <- w * exp((r_k - r_{k-1}) / lambda),          Z = product over resamplings of the mean weight, times the last one

is sequential Monte Carlo for pi(y) exp(r(y) / lambda): Z is an unbiased estimate of E_pi[exp(r(y) / lambda)], whatever
the rewards of unfinished texts say, which decide its variance only. Resampling is systematic, with named randomness.

`weights: latest` is the authors' code (its_hub): w = exp(r_k / lambda), resampled after every block. There the reward
is the log-odds of a process reward model. Differs from it: their resampling is multinomial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aisp_ray.methods.base import Blocks, Candidate, Info, State, candidates, require
from aisp_ray.rng import generator
from aisp_ray.types import Prompt, Proposal, Rollouts, Scores
from aisp_ray.weights import effective_sample_size, log_mean_exp, systematic

WEIGHTS = ("increments", "latest")
SELECTIONS = ("best", "weight")


@dataclass(frozen=True, slots=True)
class ParticleFilterState(State):
    """`State` with the particles, their log weights since the last resampling, and log Z up to it."""

    particles: tuple[Candidate, ...] = ()
    log_weights: tuple[float, ...] = ()  # [n]
    log_normaliser: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ParticleFilter(Blocks):
    """Settings of the particle filter; `n` is the number of particles."""

    reward_temperature: float = 0.3  # [lambda], reward units
    resample_below: float = 0.5  # resample when the effective sample size is below this share of n; 1: every block
    weights: str = "increments"  # increments: sequential Monte Carlo | latest: the latest reward alone
    select: str = "best"  # best: the highest reward of finished ones | weight: a draw by the last weights

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.reward_temperature > 0, f"reward_temperature is {self.reward_temperature}; it must be above 0")
        require(0 < self.resample_below <= 1, f"resample_below is {self.resample_below}; it is a share in (0, 1]")
        require(self.weights in WEIGHTS, f"weights is {self.weights!r}; it is one of {', '.join(WEIGHTS)}")
        require(self.select in SELECTIONS, f"select is {self.select!r}; it is one of {', '.join(SELECTIONS)}")

    def init(self, prompt: Prompt, seed: int) -> ParticleFilterState:
        return ParticleFilterState(prompt.prompt_id, seed, log_weights=(0.0,) * self.n)

    def ask(self, state: ParticleFilterState) -> Proposal:
        if state.iteration == 0:
            return self.grow(state, [()] * self.n)
        return self.grow(state, [one.token_ids for one in state.particles if self.is_open(one)])

    def tell(self, state: ParticleFilterState, rollouts: Rollouts, scores: Scores) -> tuple[ParticleFilterState, Info]:
        grown = candidates(rollouts, scores)
        particles, log_weights = self._weigh(state, grown)
        best, log_normaliser = self.best_of(state.best, grown), state.log_normaliser
        if not np.isfinite(log_weights).any():  # nothing that has a reward is left to continue
            return replace(state, iteration=state.iteration + 1, done=True, best=best), {}
        total = log_normaliser + log_mean_exp(log_weights)
        weights = np.exp(log_weights - log_weights.max())
        ess = effective_sample_size(weights / weights.sum())
        if self._has_open(particles) and (self.resample_below == 1 or ess < self.resample_below * self.n):
            draw = generator(state.seed, state.prompt_id, "particle filter", state.iteration).random()
            particles = [particles[i] for i in systematic(weights, self.n, draw)]
            weights, log_weights, log_normaliser = np.ones(self.n), np.zeros(self.n), total
        done = not self._has_open(particles)
        if done and self.select == "weight":
            draw = generator(state.seed, state.prompt_id, "particle filter choice").random()
            best = particles[systematic(weights, 1, draw)[0]]
        carried = replace(
            state,
            iteration=state.iteration + 1,
            done=done,
            best=best,
            particles=tuple(particles),
            log_weights=tuple(log_weights.tolist()),
            log_normaliser=log_normaliser,
        )
        return carried, {"ess": ess, **({"log_normaliser": total} if self.weights == "increments" else {})}

    def _has_open(self, particles: Sequence[Candidate]) -> bool:
        return any(self.is_open(one) for one in particles)

    def _weigh(self, state: ParticleFilterState, grown: list[Candidate]) -> tuple[list[Candidate], np.ndarray]:
        """The particles with the open ones continued, and their log weights, -inf without a reward. [n] each."""
        fresh = iter(grown)
        before = state.particles or (None,) * self.n
        particles, log_weights = [], np.array(state.log_weights)
        for i, old in enumerate(before):
            new = next(fresh) if old is None or self.is_open(old) else old
            particles.append(new)
            if self.weights == "latest":
                log_weights[i] = new.reward / self.reward_temperature
            elif new is not old:
                log_weights[i] += (new.reward - (old.reward if old else 0.0)) / self.reward_temperature
        return particles, np.where(np.isnan(log_weights), -np.inf, log_weights)
