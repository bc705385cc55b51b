"""AISP by resampling: importance weights as in AISP, but on whole responses instead of on a mean.

A memory holds the best distinct responses of a prompt. Each round draws n ancestors from it with probability
proportional to exp(r / lambda), AISP's weights; each child keeps a random-length prefix of its ancestor and draws the
rest anew, sampled and/or under Gaussian pre-logit noise. lambda is set each round so that the weights have a given
effective number of ancestors, so it needs no tuning per reward model.

What it approximates: population Monte Carlo (Cappe et al., 2004) for pi(y) exp(r(y) / lambda), whose resampled
population replaces the Gaussian q of AISP; there is no average in a space of (horizon x width) dimensions, so nothing
is lost to averaging unlike directions. QAlign moves one response by the same prefix-keeping proposal and corrects it by
an accept step; here the population competes instead. The correction for the proposal (children share their ancestors'
prefixes) and the trim to the best are left out: it is an optimiser that concentrates, not a sampler of the tilted
distribution. No paper is known to us that describes it in this form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.methods._importance import PRELOGITS, check_sigma_scale, scale_of
from aisp_ray.methods._memory import Member, remember
from aisp_ray.methods._selection import PREFIX_SELECTIONS
from aisp_ray.methods.base import Info, Iterative, State, check_horizon, check_sampling, require
from aisp_ray.rng import generator
from aisp_ray.types import CONTROL, PREFIXES, Control, Proposal, Rollouts, Sampling, Scores
from aisp_ray.weights import effective_sample_size, importance_weights, systematic, temperature_for_ess


@dataclass(frozen=True, slots=True)
class PopulationState(State):
    """`State` with the memory, best first."""

    members: tuple[Member, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AispPopulation(Iterative):
    """Settings of the resampling variant of AISP."""

    memory: int = 8  # distinct responses kept, the best ones
    ancestors: float = 2.0  # effective number of ancestors that lambda is set for, in [1, memory]
    temperature: float = 0.7  # of the new part; 0 decodes greedily, which needs sigma
    top_p: float = 1.0  # nucleus mass when temperature is above 0
    sigma: float = 0.0  # standard deviation of pre-logit noise on the new part; 0: none
    sigma_scale: str = PRELOGITS  # what sigma measures: prelogits, or logits: sigma 1 moves them by 1
    horizon: int | None = None  # positions that the noise reaches, only with sigma; null: all
    keep: float = 1.0  # longest share of an ancestor that a child may keep, in (0, 1]
    first_rounds: int = 1  # rounds without ancestors, before resampling starts
    fresh: float = 0.0  # share of each round's children without an ancestor, in [0, 1)

    state_class = PopulationState
    selections = PREFIX_SELECTIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.memory >= 1, f"memory is {self.memory}; keep at least 1 response")
        require(1 <= self.ancestors <= self.memory, f"ancestors is {self.ancestors}; it lies in [1, memory]")
        check_sampling(self.temperature, self.top_p)
        require(self.sigma >= 0, f"sigma is {self.sigma}; it is a standard deviation, 0 or above")
        check_sigma_scale(self.sigma_scale)
        require(self.sigma > 0 or self.temperature > 0, "temperature and sigma are both 0: all children would be equal")
        check_horizon(self.horizon)
        require(1 <= self.first_rounds <= self.kappa, f"first_rounds is {self.first_rounds}; it lies in [1, kappa]")
        require(0 < self.keep <= 1, f"keep is {self.keep}; it is a share in (0, 1]")
        require(0 <= self.fresh < 1, f"fresh is {self.fresh}; it is a share in [0, 1)")

    @property
    def asks_for(self) -> frozenset[str]:
        return frozenset({PREFIXES, CONTROL} if self.sigma > 0 else {PREFIXES})

    def ask(self, state: PopulationState) -> Proposal:
        law = OpenLoop(self.horizon, sigma=self.sigma, scale=scale_of(self.sigma_scale))
        control = law if self.sigma > 0 else Control()
        sampling = Sampling(self.temperature, self.top_p)
        prefixes = self._prefixes(state)
        return Proposal(state.iteration, self.n, control, sampling, prefixes=prefixes)

    def tell(self, state: PopulationState, rollouts: Rollouts, scores: Scores) -> tuple[PopulationState, Info]:
        members = remember(state.members, rollouts, scores, self.memory)
        carried, info = self.advance(state, rollouts, scores, members=members)
        return carried, info if not members else {"ess": effective_sample_size(self._weights(members)), **info}

    def _weights(self, members: Sequence[Member]) -> np.ndarray:
        """Probability of each member to be an ancestor, float64 [members]."""
        rewards = [member.reward for member in members]
        return importance_weights(rewards, temperature_for_ess(rewards, self.ancestors))

    def _prefixes(self, state: PopulationState) -> tuple[tuple[int, ...], ...] | None:
        """What each child keeps of its ancestor; None in the first rounds."""
        if state.iteration < self.first_rounds or not state.members:
            return None
        draw = generator(state.seed, state.prompt_id, "population", state.iteration)
        num_children = self.n - int(self.fresh * self.n)
        chosen = systematic(self._weights(state.members), num_children, draw.random())
        parents = [state.members[i].token_ids for i in chosen]
        shares = self.keep * draw.random(num_children)
        kept = [ids[: int(share * len(ids))] for ids, share in zip(parents, shares, strict=True)]
        return (*kept, *[()] * (self.n - num_children))
