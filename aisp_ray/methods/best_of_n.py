"""Best-of-n: draw n * kappa responses from the policy itself and keep the one with the highest reward.

The papers' baseline draws at temperature 1 and top-p 0.95; an untuned temperature makes it a strawman, so the presets
hold a tuned one too. Draws go out `n` at a time, so that its traces line up with those of iterative methods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from aisp_ray.methods.base import Info, State, best_candidate, require
from aisp_ray.types import Prompt, Proposal, Rollouts, Sampling, Scores


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Settings of best-of-n."""

    n: int = 16  # responses a round
    kappa: int = 16  # rounds; n * kappa responses in all
    temperature: float = 1.0  # above 0
    top_p: float = 0.95  # nucleus mass, in (0, 1]
    top_k: int = 0  # 0 keeps the whole vocabulary

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n is {self.n}; give at least 1 response a round")
        require(self.kappa >= 1, f"kappa is {self.kappa}; give at least 1 round")
        require(self.temperature > 0, f"temperature is {self.temperature}; best-of-n needs sampling, above 0")
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; it is a probability mass in (0, 1]")
        require(self.top_k >= 0, f"top_k is {self.top_k}; 0 keeps all tokens")

    @property
    def num_samples(self) -> int:
        return self.n * self.kappa

    @property
    def num_iterations(self) -> int:
        return self.kappa

    def init(self, prompt: Prompt, seed: int) -> State:
        return State(prompt.prompt_id, seed)

    def ask(self, state: State) -> Proposal:
        sampling = Sampling(self.temperature, self.top_p, self.top_k)
        return Proposal(state.iteration, self.n, sampling=sampling)

    def tell(self, state: State, rollouts: Rollouts, scores: Scores) -> tuple[State, Info]:
        iteration = state.iteration + 1
        best = best_candidate(state.best, rollouts, scores)
        return replace(state, iteration=iteration, done=iteration >= self.kappa, best=best), {}
