"""QAlign: Markov chain Monte Carlo over responses (Faria and Smith, 2025, arXiv 2504.03790).

A step picks a position of the current response uniformly, draws the rest anew from the policy, and accepts with
probability min(1, exp((r' - r) / beta) * |y| / |y'|). The chain's stationary distribution is pi(y) exp(r(y) / beta),
the policy tilted by the reward, with pi the policy at the sampling temperature. `n` independent chains make `kappa`
rounds; their first states are draws from the policy. Draws that decide are named, so that a run repeats.

Differs from the paper: chains are many and short by default (n chains share the budget), and the default answer is the
highest reward seen, as for the other methods; `select=last` returns the first chain's last state (of the chains that
ever got a reward), a draw from (about) the tilted distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aisp_ray.methods._selection import PREFIX_SELECTIONS
from aisp_ray.methods.base import Candidate, Info, Iterative, State, require
from aisp_ray.rng import generator
from aisp_ray.types import PREFIXES, Prompt, Proposal, Rollouts, Sampling, Scores


@dataclass(frozen=True, slots=True)
class QAlignState(State):
    """`State` with where every chain is; a chain whose responses all failed so far is None."""

    chains: tuple[Candidate | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QAlign(Iterative):
    """Settings of QAlign: `n` independent chains of `kappa` draws, a first one and kappa - 1 steps."""

    beta: float = 0.5  # reward units; the paper uses 0.5 to 1
    temperature: float = 1.0  # of the policy that is tilted, above 0
    select: str = "best"  # best | soft | poisson | random of all draws, or last: the first chain's last state

    state_class = QAlignState
    selections = (*PREFIX_SELECTIONS, "last")
    asks_for = frozenset({PREFIXES})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, f"beta is {self.beta}; it must be above 0 (reward units)")
        require(self.temperature > 0, f"temperature is {self.temperature}; the chain needs sampling, above 0")

    def init(self, prompt: Prompt, seed: int) -> QAlignState:
        return QAlignState(prompt.prompt_id, seed, chains=(None,) * self.n)

    def ask(self, state: QAlignState) -> Proposal:
        draw = generator(state.seed, state.prompt_id, "qalign cut", state.iteration)
        positions = draw.random(self.n)  # drawn for every chain, so that one's state does not shift another's
        prefixes = tuple(
            () if chain is None else chain.token_ids[: int(at * len(chain.token_ids))]
            for chain, at in zip(state.chains, positions, strict=True)
        )
        return Proposal(state.iteration, self.n, sampling=Sampling(self.temperature), prefixes=prefixes)

    def tell(self, state: QAlignState, rollouts: Rollouts, scores: Scores) -> tuple[QAlignState, Info]:
        uniform = generator(state.seed, state.prompt_id, "qalign accept", state.iteration).random(self.n)
        chains, accepted = [], []
        for i, (chain, item) in enumerate(zip(state.chains, rollouts.items, strict=True)):
            new = Candidate(item.text, scores.rewards[i], state.iteration, i, item.finish_reason, item.token_ids)
            moved = uniform[i] < acceptance(chain, new, self.beta)
            chains.append(new if moved else chain)
            accepted.append(bool(moved))
        last = {"best": next((chain for chain in chains if chain is not None), None)} if self.select == "last" else {}
        carried, info = self.advance(state, rollouts, scores, chains=tuple(chains), **last)
        return carried, {"accept_rate": float(np.mean(accepted)), **info}


def acceptance(old: Candidate | None, new: Candidate, beta: float) -> float:
    """Metropolis-Hastings probability of moving; a response without a reward is never moved to."""
    if not math.isfinite(new.reward):
        return 0.0
    if old is None:
        return 1.0
    log_ratio = (new.reward - old.reward) / beta + math.log(len(old.token_ids) / len(new.token_ids))
    return math.exp(min(0.0, log_ratio))
