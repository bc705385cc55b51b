"""Rejection sampling by segments, the acceptance rule of CARDS (Li, Wang, Grama and Zhang, 2024, arXiv 2406.16306).

A response grows by segments. Candidates for the next one are drawn and scored in turn; one of reward r is accepted with
probability

    min(1, exp((r - threshold) / beta)),    threshold = start + length / max_new_tokens * (target - start)

with length that of the response with the candidate. If none of `rounds` rounds has one, the best of them all is taken.
In the authors' code (lblaoke/CARDS, `seg_fix_rs_generate`) start is (1 - alpha) times the reward of the prompt alone
plus alpha = 0.5 times the target, there are 20 rejections at most, and candidates are drawn one at a time (n = 1).

Differs from the paper: segments have a fixed length, as in the baselines of the authors' code. CARDS itself cuts them
where the policy is uncertain of its next token (entropy above a threshold), which an engine here does not say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from aisp_ray.methods.base import Blocks, Candidate, Info, State, candidates, require
from aisp_ray.rng import generator
from aisp_ray.types import Prompt, Proposal, Rollouts, Sampling, Scores


@dataclass(frozen=True, slots=True)
class CardsState(State):
    """`State` with the response so far, and what was tried for its next segment."""

    tokens: tuple[int, ...] = ()
    tried: int = 0  # rounds
    candidate: Candidate | None = None  # the best of them


@dataclass(frozen=True, kw_only=True)
class Cards(Blocks):
    """Settings of rejection sampling by segments of `block` tokens; `n` candidates a round."""

    target: float  # threshold of a whole response, reward units
    start: float  # threshold of an empty one, at most target
    beta: float = 0.7  # reward units; towards 0 the threshold is hard
    rounds: int = 21  # rounds for a segment before its best candidate is taken; the authors' 20 rejections at n=1

    budget_key = "rounds"  # the most that it may cost; what it costs depends on what is accepted

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start <= self.target, f"start is {self.start}; it is at most target={self.target}")
        require(self.beta > 0, f"beta is {self.beta}; it must be above 0 (reward units)")
        require(self.rounds >= 1, f"rounds is {self.rounds}; draw at least 1 round a segment")

    @property
    def num_iterations(self) -> int:
        return self.rounds * super().num_iterations

    @property
    def num_samples(self) -> int:
        return self.n * self.num_iterations

    def num_rows(self, iteration: int) -> int:
        return self.n * self.rounds

    def init(self, prompt: Prompt, seed: int) -> CardsState:
        return CardsState(prompt.prompt_id, seed)

    def ask(self, state: CardsState) -> Proposal:
        length = min(len(state.tokens) + self.block, self.max_new_tokens)
        sampling, prefixes = Sampling(self.temperature, self.top_p), (state.tokens,) * self.n
        return Proposal(state.iteration, self.n, sampling=sampling, max_new_tokens=length, prefixes=prefixes)

    def threshold(self, length: int) -> float:
        """Reward at which a text of so many tokens is accepted for certain."""
        return self.start + length / self.max_new_tokens * (self.target - self.start)

    def tell(self, state: CardsState, rollouts: Rollouts, scores: Scores) -> tuple[CardsState, Info]:
        uniform = generator(state.seed, state.prompt_id, "cards", state.iteration).random(self.n)
        best, chosen = state.candidate, None
        for one, draw in zip(candidates(rollouts, scores), uniform, strict=True):
            if not math.isfinite(one.reward):
                continue
            best = one if best is None or one.reward > best.reward else best
            chance = math.exp(min(0.0, (one.reward - self.threshold(len(one.token_ids))) / self.beta))
            chosen = one if chosen is None and draw < chance else chosen
        accepted, last = chosen is not None, state.tried + 1 == self.rounds
        if not accepted and last:
            chosen = best
        state = replace(state, iteration=state.iteration + 1, tried=state.tried + 1, candidate=best)
        if chosen is not None:
            done = not self.is_open(chosen)
            state = replace(state, best=chosen, tokens=chosen.token_ids, tried=0, candidate=None, done=done)
        elif last:  # no candidate has a reward
            state = replace(state, done=True)
        elif state.best is None or not state.tokens:
            state = replace(state, best=best)
        return state, {"accepted": float(accepted)}
