"""ARGS: reward-guided decoding, a token at a time (Khanov et al., ICLR 2024, arXiv 2402.01694).

At every step the k most likely tokens each extend the response so far, the reward model scores the k unfinished texts,
and the token with the highest  logit(v) + weight * r(response, v)  is kept (greedy), or one is drawn from
softmax of that over `temperature` (stochastic). Raw logits, as in the authors' code, not log-probabilities.

Texts are scored, so policy and reward may have different vocabularies. The cost is in the ledger as it is: every step
is k samples of one token and k reward calls. A reward model that keeps keys and values reads only the end of each text
(`read_on` of its settings), with a shared vocabulary one or a few tokens; any other reads k whole texts a step.

Differs from the paper: a response ends at the policy's end token; the authors' code always decodes to the limit. A
particle without a reward is never chosen. The result is the finished response; unfinished ones are not candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from aisp_ray.methods.base import Candidate, Info, Method, State, check_sampling, require
from aisp_ray.rng import generator
from aisp_ray.types import BRANCHES, PREFIXES, Prompt, Proposal, Rollout, Rollouts, Sampling, Scores


@dataclass(frozen=True, slots=True)
class ArgsState(State):
    """`State` with the response so far; its `best` is that response."""

    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Args(Method):
    """Settings of ARGS."""

    k: int = 10  # tokens tried at each step
    weight: float = 1.0  # [w] logits per unit of reward
    max_new_tokens: int = 128  # steps at most; not above the policy's own limit
    temperature: float = 0.0  # 0: ARGS-greedy; above 0: ARGS-stochastic (the authors' default is 0.7)

    asks_for = frozenset({PREFIXES, BRANCHES})

    def __post_init__(self) -> None:
        require(self.k >= 1, f"k is {self.k}; try at least 1 token a step")
        require(self.weight >= 0, f"weight is {self.weight}; it is 0 or above, logits per unit of reward")
        require(self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}; give at least 1")
        check_sampling(self.temperature)

    @property
    def num_samples(self) -> int:
        return self.k * self.max_new_tokens

    @property
    def num_iterations(self) -> int:
        return self.max_new_tokens

    def max_generated_tokens(self, max_new_tokens: int) -> int:
        return self.k * min(self.max_new_tokens, max_new_tokens)

    def init(self, prompt: Prompt, seed: int) -> ArgsState:
        return ArgsState(prompt.prompt_id, seed)

    def ask(self, state: ArgsState) -> Proposal:
        return Proposal(
            iteration=state.iteration,
            num_samples=self.k,
            sampling=Sampling(branch_first=True),
            max_new_tokens=len(state.tokens) + 1,
            prefixes=(state.tokens,) * self.k,
        )

    def tell(self, state: ArgsState, rollouts: Rollouts, scores: Scores) -> tuple[ArgsState, Info]:
        iteration = state.iteration + 1
        grown = [item.num_generated_tokens > 0 for item in rollouts.items]
        if not any(grown):  # the policy's limit is below ours: the response so far is the result
            return replace(state, iteration=iteration, done=True), {}
        chosen, reward = self._choose(state, rollouts, scores)
        if chosen is None:
            return replace(state, iteration=iteration, done=True), {}
        best = Candidate(
            response=chosen.text,
            reward=reward,
            iteration=rollouts.iteration,
            particle=chosen.particle,
            finish_reason=chosen.finish_reason,
            token_ids=chosen.token_ids,
        )
        done = chosen.finish_reason != "length" or iteration >= self.max_new_tokens
        return replace(state, iteration=iteration, done=done, best=best, tokens=chosen.token_ids), {}

    def _choose(self, state: ArgsState, rollouts: Rollouts, scores: Scores) -> tuple[Rollout | None, float]:
        """The extension that is kept and its reward; None when none of the k has a reward."""
        rewards = np.asarray(scores.rewards, dtype=np.float64)
        value = np.array([item.first_logit for item in rollouts.items]) + self.weight * rewards  # [k]
        value = np.where(np.isfinite(value), value, -np.inf)
        if not np.isfinite(value).any():
            return None, math.nan
        if self.temperature > 0:
            # Gumbel-max: a draw from softmax(value / temperature)
            gumbel = generator(state.seed, state.prompt_id, "args", state.iteration).gumbel(size=len(value))
            value = value / self.temperature + gumbel
        winner = int(value.argmax())
        return rollouts.items[winner], float(rewards[winner])
