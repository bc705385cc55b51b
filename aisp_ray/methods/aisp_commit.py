"""AISP on a committed prefix: the search moves along the response, as model predictive control moves along time.

AISP's mean is tied to positions. Once two particles differ in a token, position t means something else in each, and a
mean that one taught does not help the other. Here the particles of an iteration all begin with a prefix of the best
response so far, which grows from iteration to iteration; noise and mean act after it, where the particles still agree
on what a position is. What is committed is not drawn again, so an iteration costs fewer tokens than the one before.

    m_k = share_k * |best|,   share_k = commit * ((k - free + 1) / (kappa - free))^power     tokens kept in iteration k

The update of the mean is AISP's (`aisp.py`) at positions from m_k on; before them it stays. The prefix is of the best
response at the time: it may be another one than an iteration before, and shorter. No paper is known to us that
describes it in this form; receding-horizon control is textbook (Mayne et al., 2000).

With `winners` above 0 no more is committed than so many of the best distinct responses begin with: the schedule is
then the most that is kept, and what is kept good responses agree on. `sigma_decay` above 1 lets the noise grow along
the response, as in `aisp.py`: little where a change would make another response, more where it only ends it otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from aisp_ray.methods._importance import AispState, ImportanceSampled
from aisp_ray.methods._memory import Member, agreed, remember
from aisp_ray.methods._selection import PREFIX_SELECTIONS
from aisp_ray.methods.base import Info, require
from aisp_ray.types import PREFIXES, Proposal, Rollouts, Scores

_OPEN = 2  # tokens of the best response that are never committed: the end token, and one before it


@dataclass(frozen=True, slots=True)
class CommitState(AispState):
    """`AispState` with the best distinct responses, best first, where their agreement is committed."""

    members: tuple[Member, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AispCommit(ImportanceSampled):
    """Settings of AISP on a committed prefix. With adapt=false the prefix grows and the mean stays 0 (ablation)."""

    sigma: float = 0.15  # standard deviation of the noise [sigma]
    temperature: float = 0.7  # 0 decodes greedily under the perturbation, above 0 samples
    commit: float = 0.75  # share of the best response that the last iteration begins with, in (0, 1]
    free_iterations: int = 2  # first iterations that begin with nothing
    power: float = 1.0  # of the schedule: 1 commits linearly, above 1 later, below 1 earlier
    winners: int = 0  # commit only what so many of the best responses begin with, above 1; 0: what the best one does
    sigma_decay: float = 1.0  # sigma's factor from a position to the next; above 1 noise grows along the response

    state_class = CommitState
    selections = PREFIX_SELECTIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.commit <= 1, f"commit is {self.commit}; it is a share in (0, 1]")
        require(self.free_iterations >= 1, f"free_iterations is {self.free_iterations}; the first has nothing to keep")
        require(self.power > 0, f"power is {self.power}; it must be above 0, 1 is linear")
        require(self.winners == 0 or self.winners > 1, f"winners is {self.winners}; give 0, or 2 or more responses")
        require(self.sigma_decay > 0, f"sigma_decay is {self.sigma_decay}; it is a factor above 0, 1 keeps sigma")

    @property
    def asks_for(self) -> frozenset[str]:
        return super().asks_for | {PREFIXES}

    def prefix(self, state: CommitState) -> tuple[int, ...]:
        """The tokens that this iteration's particles begin with."""
        if state.iteration < self.free_iterations or state.best is None:
            return ()
        ids = state.best.token_ids
        done = (state.iteration - self.free_iterations + 1) / max(1, self.kappa - self.free_iterations)
        most = min(int(self.commit * done**self.power * len(ids)), len(ids) - _OPEN)
        if self.winners:
            ids = state.members[0].token_ids if state.members else ()
            most = min(most, agreed(state.members), len(ids) - _OPEN)
        return ids[: max(0, most)]

    def ask(self, state: CommitState) -> Proposal:
        prefix = self.prefix(state)
        prefixes = (prefix,) * self.n if prefix else None
        control = self.control(state, self.sigma_decay)
        return Proposal(state.iteration, self.n, control, self.sampling, prefixes=prefixes, want=self.want)

    def tell(self, state: CommitState, rollouts: Rollouts, scores: Scores) -> tuple[CommitState, Info]:
        committed = len(self.prefix(state))
        log, update = self.updated(state.log, rollouts, scores, start=committed)
        members = remember(state.members, rollouts, scores, self.winners) if self.winners else ()
        carried, info = self.advance(state, rollouts, scores, log=log, members=members)
        return carried, {"committed_tokens": float(committed), **update, **info}
