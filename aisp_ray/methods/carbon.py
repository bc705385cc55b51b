"""Calibrated best-of-n, after CarBoN (Tang, Chen and Cavallaro, 2025, arXiv 2510.15674): explore, fit, draw again.

A share `explore` of the iterations draws from the policy. A shift of the pre-logits, the same at every position, is
then fitted to the `top` best distinct responses by maximum likelihood (`controls/shift.py`), and the other iterations
draw under it. AISP moves the same pre-logits by its particles' noise, position by position; here they move along the
gradient, once, and a response need not agree with another on what a position is.

Written from the abstract, the introduction and public reviews: an input-specific temperature and an additive shift
before the head are learnt from the best responses of a first phase, with a penalty on the shift. Differs from the
paper: the second temperature is a key and not learnt, since a method here does not see the pre-logits that it would be
fitted to. The penalty's form, the optimiser and all default values are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.shift import Shift
from aisp_ray.methods._memory import Member, remember
from aisp_ray.methods.base import Info, Iterative, State, check_horizon, check_top_p, require
from aisp_ray.types import CONTROL, Control, Proposal, Rollouts, Sampling, Scores


@dataclass(frozen=True, slots=True)
class CarbonState(State):
    """`State` with the best distinct responses of the first phase, best first."""

    members: tuple[Member, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Carbon(Iterative):
    """Settings of calibrated best-of-n: a share of the kappa iterations explores, the others draw under the shift."""

    explore: float = 0.25  # share of the iterations in the first phase, in (0, 1); at least one of them
    top: int = 8  # best responses that the shift is fitted to
    strength: float = 0.01  # of the penalty strength / 2 |shift|^2 beside the mean token's surprise, above 0
    steps: int = 50  # steps of the fit (L-BFGS) at most
    temperature: float = 1.0  # of the first phase, above 0
    calibrated_temperature: float = 0.7  # of the second phase and of the fit, above 0
    top_p: float = 1.0  # nucleus mass of both
    horizon: int | None = None  # positions that are shifted; null: all

    state_class = CarbonState

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.explore < 1, f"explore is {self.explore}; it is a share of the iterations in (0, 1)")
        require(self.top >= 1, f"top is {self.top}; fit to at least 1 response")
        require(self.strength > 0, f"strength is {self.strength}; it must be above 0")
        require(self.steps >= 1, f"steps is {self.steps}; make at least 1")
        for name in ("temperature", "calibrated_temperature"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        check_top_p(self.top_p)
        check_horizon(self.horizon)

    @property
    def num_exploring(self) -> int:
        """Iterations of the first phase."""
        return max(1, min(round(self.explore * self.kappa), self.kappa - 1))

    def mean(self, state: CarbonState) -> Shift | None:
        """What describes the shift of this state; None in the first phase, or when nothing had a reward in it."""
        if state.iteration < self.num_exploring or not state.members:
            return None
        ids = tuple(member.token_ids for member in state.members)
        return Shift(ids, self.calibrated_temperature, self.strength, self.steps)

    @property
    def asks_for(self) -> frozenset[str]:
        return self.needed | {CONTROL}

    def ask(self, state: CarbonState) -> Proposal:
        mean = self.mean(state)
        control = Control() if mean is None else OpenLoop(horizon=self.horizon, mean=mean)
        sampling = Sampling(self.temperature if mean is None else self.calibrated_temperature, self.top_p)
        return Proposal(state.iteration, self.n, control, sampling, want=self.needed)

    def tell(self, state: CarbonState, rollouts: Rollouts, scores: Scores) -> tuple[CarbonState, Info]:
        members = state.members
        if state.iteration < self.num_exploring:
            members = remember(members, rollouts, scores, self.top)
        return self.advance(state, rollouts, scores, members=members)
