"""What a method is: `init`, `ask` and `tell`, and the state that is carried between them.

A method sees neither Ray nor a GPU nor torch. `tell` is pure: state in, state and info out. State is what must be
carried (it is snapshotted as JSON and resumed); info is what is only looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aisp_ray.types import Prompt, Proposal, Rollouts, Scores


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response and where it came from."""

    response: str
    reward: float
    iteration: int
    particle: int
    finish_reason: str
    token_ids: tuple[int, ...] = ()
    logprob: float = math.nan


@dataclass(frozen=True, slots=True)
class State:
    """Carried between iterations. Methods subclass it with fields of JSON values, tuples and dataclasses."""

    prompt_id: str
    seed: int
    iteration: int = 0
    done: bool = False
    best: Candidate | None = None  # what the method would return if it stopped now


Info = Mapping[str, float]  # diagnostics of one iteration by name, e.g. {"ess": 3.2}; a missing one is NaN in the row


class Method(Protocol):
    """The protocol of a method. `num_samples` and `num_iterations` are its whole budget, for one prompt."""

    @property
    def num_samples(self) -> int:
        """Responses (reward calls) it will ask for in all."""

    @property
    def num_iterations(self) -> int: ...

    def init(self, prompt: Prompt, seed: int) -> State: ...

    def ask(self, state: Any) -> Proposal: ...

    def tell(self, state: Any, rollouts: Rollouts, scores: Scores) -> tuple[Any, Info]: ...


def best_candidate(best: Candidate | None, rollouts: Rollouts, scores: Scores) -> Candidate | None:
    """The better of `best` and these rollouts. The first seen wins a tie; a particle without a reward never wins."""
    for rollout, reward in zip(rollouts.items, scores.rewards, strict=True):
        if math.isfinite(reward) and (best is None or reward > best.reward):
            best = Candidate(
                response=rollout.text,
                reward=reward,
                iteration=rollouts.iteration,
                particle=rollout.particle,
                finish_reason=rollout.finish_reason,
                token_ids=rollout.token_ids,
                logprob=rollout.logprob,
            )
    return best


def require(condition: bool, message: str) -> None:
    """A `ValueError` for whoever wrote the configuration."""
    if not condition:
        raise ValueError(message)
