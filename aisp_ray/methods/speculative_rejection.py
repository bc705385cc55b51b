"""Speculative rejection: begin many responses, drop the worst early (Sun et al., 2024, arXiv 2410.20290).

n responses are begun. After every block all are ranked by the reward of their text so far, and the worst share
`reject` is dropped; the others are continued. The best finished response is returned. The tokens that dropped responses
would at most have taken are in the ledger as `tokens_saved`, beside those that were really generated.

Differs from the paper: decisions are made after a fixed number of tokens, so that a run does not depend on the
memory of its GPU, where the authors' code decides when the memory is full. As there, finished responses are ranked
with the others, so that they can push unfinished ones out, and are never lost themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from aisp_ray.methods.base import Blocks, Candidate, Info, State, candidates, require
from aisp_ray.types import Prompt, Proposal, Rollouts, Scores


@dataclass(frozen=True, slots=True)
class RejectionState(State):
    """`State` with the responses that were not dropped."""

    kept: tuple[Candidate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SpeculativeRejection(Blocks):
    """Settings of speculative rejection."""

    n: int = 64  # responses that are begun
    reject: float = 0.5  # share that is dropped after each block, in [0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.reject < 1, f"reject is {self.reject}; it is a share in [0, 1)")

    def num_rows(self, iteration: int) -> int:
        rows = self.n
        for _ in range(iteration):
            rows = self._keep(rows)
        return rows

    def _keep(self, count: int) -> int:
        return max(1, math.floor((1 - self.reject) * count + 0.5))

    def init(self, prompt: Prompt, seed: int) -> RejectionState:
        return RejectionState(prompt.prompt_id, seed)

    def ask(self, state: RejectionState) -> Proposal:
        live = [one.token_ids for one in state.kept if self.is_open(one)]
        return self.grow(state, live if state.iteration else [()] * self.n)

    def tell(self, state: RejectionState, rollouts: Rollouts, scores: Scores) -> tuple[RejectionState, Info]:
        grown = candidates(rollouts, scores)
        pool = [*(one for one in state.kept if not self.is_open(one)), *grown]
        ranked = sorted(pool, key=lambda one: -one.reward if math.isfinite(one.reward) else math.inf)
        kept, dropped = ranked[: self._keep(len(pool))], ranked[self._keep(len(pool)) :]
        kept = [one for one in kept if math.isfinite(one.reward)]
        saved = sum(self.max_new_tokens - len(one.token_ids) for one in dropped if self.is_open(one))
        best = self.best_of(state.best, grown)
        done = not any(self.is_open(one) for one in kept)
        carried = replace(state, iteration=state.iteration + 1, done=done, best=best, kept=tuple(kept))
        return carried, {"tokens_saved": float(saved)}
