"""MISVO: minimally invasive steering of pre-logits.

Entesari, Zhang, Khashabi and Fazlyab, "Minimally Invasive Steering of Language Models", arXiv 2609.30218, NeurIPS 2026.

The mean u [t, d] climbs the score-function gradient of the expected reward under a penalty for leaving the policy:

    A_i = r_i - mean_{j != i} r_j,      g_t = 1/K sum_i A_i W^T (e_{y_t^i} - p_t^i),
    u_t <- u_t + eta * (g_t - lambda * F_t u_t),

with K responses sampled under the mean in each iteration and F_t the Fisher matrix of the base policy, averaged over
the first iteration's prefixes and then frozen. The best response of all iterations is returned. Variants are switches:

- `penalty`: `kl` (exact token KL on the same prefixes), `l2` (u itself), `none`;
- `fisher`: `prefixes` averages the base policy's matrix over the prefixes drawn under the present mean, `on_policy` the
  controlled policy's matrix over them.

The gradients are contracted on the policy's device (`controls/score_log.py`); the driver keeps token ids and
advantages only.

Differs from the paper: it fixes the length and does not model the end token; here positions after an end contribute to
no gradient, and F_t averages over the prefixes that are alive at t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.score_log import FISHERS, PENALTIES, ScoreEntry, ScoreLog
from aisp_ray.methods.base import Info, Iterative, State, check_horizon, require
from aisp_ray.types import CONTROL, Proposal, Rollouts, Sampling, Scores


@dataclass(frozen=True, slots=True)
class MisvoState(State):
    """`State` with the log that describes the mean: every response and its advantage."""

    entries: tuple[ScoreEntry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Misvo(Iterative):
    """Settings of MISVO; paper symbols in brackets. `n` is the paper's [K], at least 2, `kappa` its [N]."""

    step_size: float = 0.1  # of a gradient step [eta]
    strength: float = 1.0  # of the penalty [lambda], reward units a nat
    penalty: str = "fisher"  # fisher | kl | l2 | none
    fisher: str = "reference"  # whose Fisher matrix: reference | prefixes | on_policy (the paper's ablation)
    horizon: int | None = None  # controlled positions [T]; null: all
    temperature: float = 1.0  # of sampling and of the policy whose gradient is taken, above 0
    standardise: bool = False  # advantages in standard deviations of the iteration's rewards

    state_class = MisvoState

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n >= 2, f"n is {self.n}; leave-one-out advantages need at least 2 responses an iteration")
        require(self.step_size > 0, f"step_size is {self.step_size}; it must be above 0")
        require(self.penalty in PENALTIES, f"penalty is {self.penalty!r}; it is one of {', '.join(PENALTIES)}")
        require(self.fisher in FISHERS, f"fisher is {self.fisher!r}; it is one of {', '.join(FISHERS)}")
        require(self.fisher == "reference" or self.penalty == "fisher", "fisher has no effect without penalty=fisher")
        require(self.strength >= 0, f"strength is {self.strength}; it is 0 or above")
        check_horizon(self.horizon)
        require(self.temperature > 0, f"temperature is {self.temperature}; the score function needs sampling, above 0")

    def mean(self, state: MisvoState) -> ScoreLog | None:
        """What describes the mean of this state; None is zero."""
        if not state.entries:
            return None
        return ScoreLog(state.entries, self.step_size, self.strength, self.penalty, self.temperature, self.fisher)

    @property
    def asks_for(self) -> frozenset[str]:
        return self.needed | {CONTROL}

    def ask(self, state: MisvoState) -> Proposal:
        control = OpenLoop(horizon=self.horizon, mean=self.mean(state))
        return Proposal(state.iteration, self.n, control, Sampling(self.temperature), want=self.needed)

    def tell(self, state: MisvoState, rollouts: Rollouts, scores: Scores) -> tuple[MisvoState, Info]:
        rewards = np.asarray(scores.rewards, dtype=np.float64)
        usable = np.flatnonzero(np.isfinite(rewards))
        if len(usable) < 2:
            return self.advance(state, rollouts, scores)
        advantages = leave_one_out(rewards[usable])
        if self.standardise and (spread := float(rewards[usable].std())) > 0:
            advantages = advantages / spread
        entry = ScoreEntry(tuple(rollouts.items[i].token_ids for i in usable), tuple(advantages.tolist()))
        return self.advance(state, rollouts, scores, entries=(*state.entries, entry))


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """A_i = r_i - mean of the others = n / (n - 1) * (r_i - mean). float64 [n]."""
    n = len(rewards)
    return n / (n - 1) * (rewards - rewards.mean())
