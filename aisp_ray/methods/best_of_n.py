"""Best-of-n: draw n * kappa responses from the policy itself and keep one.

The default samples at temperature 1 and top-p 0.95 and keeps the highest reward. An untuned temperature makes it a
strawman, so the presets hold a tuned one too, and those of published code. Draws go out `n` at a time, so that its
traces line up with those of iterative methods. Two other ways to select from the same pool:

- soft: response i with probability proportional to exp(r_i / beta) (Verdun et al., 2025, "Soft Best-of-n"), drawn by
  the Gumbel-max trick with named Gumbel noise, so that no pool has to be carried;
- regularised: the highest r_i + beta * log pi(y_i) (Jinnai et al., 2024, arXiv 2404.01054, their KL form): a response
  that is unlikely under the policy needs more reward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from aisp_ray.methods.base import Info, Iterative, State, best_candidate, check_top_p, require
from aisp_ray.rng import generator
from aisp_ray.types import Proposal, Rollouts, Sampling, Scores

SELECTIONS = ("best", "soft", "regularised")


@dataclass(frozen=True, slots=True)
class BestOfNState(State):
    """`State` with what the selected response scored; its `best` is the selected one."""

    selection_score: float = -math.inf


@dataclass(frozen=True, kw_only=True)
class BestOfN(Iterative):
    """Settings of best-of-n."""

    temperature: float = 1.0  # above 0
    top_p: float = 0.95  # nucleus mass, in (0, 1]
    top_k: int = 0  # 0 keeps the whole vocabulary
    select: str = "best"  # best | soft | regularised
    beta: float | None = None  # soft: temperature in reward units; regularised: reward units a nat

    state_class = BestOfNState

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, f"temperature is {self.temperature}; best-of-n needs sampling, above 0")
        check_top_p(self.top_p)
        require(self.top_k >= 0, f"top_k is {self.top_k}; 0 keeps all tokens")
        require(self.select in SELECTIONS, f"select is {self.select!r}; it is one of {', '.join(SELECTIONS)}")
        if self.select == "best":
            require(self.beta is None, "beta has no effect with select=best; set select=soft or select=regularised")
        else:
            require(self.beta is not None and self.beta > 0, f"beta is {self.beta}; select={self.select} needs it > 0")

    def ask(self, state: BestOfNState) -> Proposal:
        sampling = Sampling(self.temperature, self.top_p, self.top_k)
        want = frozenset({"logprob"}) if self.select == "regularised" else frozenset()
        return Proposal(state.iteration, self.n, sampling=sampling, want=want)

    def tell(self, state: BestOfNState, rollouts: Rollouts, scores: Scores) -> tuple[BestOfNState, Info]:
        selection = self._selection_scores(state, rollouts, scores)
        rewards = dict(zip((item.particle for item in rollouts.items), scores.rewards, strict=True))
        # the same rule as for rewards, on selection scores; then the reward is put back
        before = replace(state.best, reward=state.selection_score) if state.best else None
        chosen = best_candidate(before, rollouts, replace(scores, rewards=tuple(selection.tolist())))
        score = chosen.reward if chosen else -math.inf
        best = state.best
        if chosen is not None and chosen is not before:
            best = replace(chosen, reward=rewards[chosen.particle])
        return self.advance(state, scores, best, selection_score=score)

    def _selection_scores(self, state: BestOfNState, rollouts: Rollouts, scores: Scores) -> np.ndarray:
        """What the highest of is kept, float64 [n]."""
        rewards = np.asarray(scores.rewards, dtype=np.float64)
        beta = float(self.beta or 0.0)
        if self.select == "soft":
            gumbel = generator(state.seed, state.prompt_id, "soft best-of-n", state.iteration).gumbel(size=len(rewards))
            return rewards / beta + gumbel
        if self.select == "regularised":
            return rewards + beta * np.array([item.logprob for item in rollouts.items])
        return rewards
