"""Best-of-n: draw n * kappa responses from the policy itself and keep one.

The default samples at temperature 1 and top-p 0.95 and keeps the highest reward. An untuned temperature makes it a
strawman, so the presets hold a tuned one too, and those of published code. Draws go out `n` at a time, so that its
traces line up with those of iterative methods. Other ways to select from the pool are keys of every iterative method
(`_selection.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from aisp_ray.methods.base import Info, Iterative, State, check_top_p, require
from aisp_ray.types import Proposal, Rollouts, Sampling, Scores


@dataclass(frozen=True, kw_only=True)
class BestOfN(Iterative):
    """Settings of best-of-n."""

    temperature: float = 1.0  # above 0
    top_p: float = 0.95  # nucleus mass, in (0, 1]
    top_k: int = 0  # 0 keeps the whole vocabulary

    same_draws = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, f"temperature is {self.temperature}; best-of-n needs sampling, above 0")
        check_top_p(self.top_p)
        require(self.top_k >= 0, f"top_k is {self.top_k}; 0 keeps all tokens")

    def ask(self, state: State) -> Proposal:
        sampling = Sampling(self.temperature, self.top_p, self.top_k)
        return Proposal(state.iteration, self.n, sampling=sampling, want=self.needed)

    def tell(self, state: State, rollouts: Rollouts, scores: Scores) -> tuple[State, Info]:
        return self.advance(state, rollouts, scores)
