"""Blockwise best-of-n, and its beam search (Mudgal et al., 2024, "Controlled decoding", arXiv 2310.17022).

Each iteration continues the `beams` best unfinished responses by a block of tokens, n continuations in all, scores all
of them and keeps the `beams` best. beams=1 is the paper's blockwise best-of-K; a block as long as the response is
best-of-n, a block of one token scores token by token, as ARGS does.

Differs from the paper: a reward model reads the unfinished text; the paper trains a value function for it. A finished
response keeps its place among the best until better ones push it out, and is the result if none of them does better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from aisp_ray.methods.base import Blocks, Candidate, Info, State, candidates, require
from aisp_ray.types import Prompt, Proposal, Rollouts, Scores


@dataclass(frozen=True, slots=True)
class BlockwiseState(State):
    """`State` with the responses that are kept, best first."""

    kept: tuple[Candidate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Blockwise(Blocks):
    """Settings of blockwise best-of-n; `n` continuations a block, over all kept responses."""

    beams: int = 1  # responses that are continued, n / beams times each; divides n

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beams >= 1, f"beams is {self.beams}; continue at least 1 response")
        require(self.n % self.beams == 0, f"beams is {self.beams}; it must divide n={self.n}")

    def init(self, prompt: Prompt, seed: int) -> BlockwiseState:
        return BlockwiseState(prompt.prompt_id, seed)

    def ask(self, state: BlockwiseState) -> Proposal:
        if state.iteration == 0:
            return self.grow(state, [()] * self.n)
        live = [one.token_ids for one in state.kept if self.is_open(one)]
        return self.grow(state, [ids for ids in live for _ in range(self.n // self.beams)])

    def tell(self, state: BlockwiseState, rollouts: Rollouts, scores: Scores) -> tuple[BlockwiseState, Info]:
        grown = candidates(rollouts, scores)
        ended = [one for one in state.kept if not self.is_open(one)]
        ranked = sorted((one for one in (*ended, *grown) if math.isfinite(one.reward)), key=lambda one: -one.reward)
        kept = tuple(ranked[: self.beams])
        done = not any(self.is_open(one) for one in kept)
        best = self.best_of(state.best, grown)
        return replace(state, iteration=state.iteration + 1, done=done, best=best, kept=kept), {}
