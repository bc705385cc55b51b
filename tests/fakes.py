"""Models that sleep: a policy and a reward model without a model, to try and to measure the machines with.

They obey the real protocols, run in the real workers, and answer with pure functions of (seed, prompt id, iteration,
particle, control), so that a run with faults can be compared row by row with one without. Faults are asked for by the
end of a prompt's id, `{"00000012": "crash"}`, by the kinds in `_FAULTS`; one that ends in `-once` happens once, which
the folder `marks` remembers.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aisp_ray.errors import DataError
from aisp_ray.policy.base import PolicySpec
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.rng import derive_seed
from aisp_ray.types import Prompt, Proposal, Rollout, Rollouts, Scores


def provoke(faults: Mapping[str, str], marks: str | None, prompt_id: str) -> None:
    """The fault of this prompt, if it has one."""
    for ending, kind in faults.items():
        if not prompt_id.endswith(ending):
            continue
        if kind.endswith("-once"):
            mark = Path(marks or ".", f"{ending}-{kind}")
            if mark.exists():
                continue
            mark.touch()
        _FAULTS[kind.removesuffix("-once")]()


def _raise(error: Exception) -> None:
    raise error


_FAULTS = {
    "crash": lambda: os._exit(1),
    "exit": lambda: _raise(SystemExit("an exit")),
    "hang": lambda: time.sleep(1e6),
    "nap": lambda: time.sleep(10),
    "data": lambda: _raise(DataError("this row is at fault")),
    "bug": lambda: _raise(RuntimeError("a bug")),
    "cuda": lambda: _raise(RuntimeError("CUDA error: device-side assert triggered")),
    "service": lambda: _raise(ConnectionError("the service is down")),
}


@dataclass(frozen=True, kw_only=True)
class SleepPolicy(PolicySpec):
    """Settings of a policy that sleeps."""

    slots: int = 16  # particles that go on in one step
    step_seconds: float = 0.001  # seconds of a step
    tokens: tuple[int, int] = (1, 8)  # fewest and most tokens of a response
    load_seconds: float = 0.0  # seconds of loading
    load_error: str = ""  # loading fails with this text
    faults: dict[str, str] = field(default_factory=dict)  # end of a prompt id -> kind of fault
    marks: str | None = None  # folder that remembers which -once faults happened

    def load(self, device: str) -> LoadedSleepPolicy:
        time.sleep(self.load_seconds)
        if self.load_error:
            raise ValueError(self.load_error)
        return LoadedSleepPolicy(self)


@dataclass(frozen=True)
class _Work:
    prompt: Prompt
    proposal: Proposal
    seed: int


class LoadedSleepPolicy:
    """`policy.base.LoadedPolicy`."""

    def __init__(self, spec: SleepPolicy):
        self.engine = SleepEngine(spec)

    def request(self, prompt: Prompt, proposal: Proposal, seed: int) -> Any:
        return _Work(prompt, proposal, seed)

    def finish(self, rollouts: Rollouts) -> Rollouts:
        return rollouts

    def describe(self, prompt: Prompt) -> str:
        return f"<user>{prompt.text}<reply>"


class SleepEngine:
    """`engine.base.Engine`: continuous batching of particles that only count down."""

    def __init__(self, spec: SleepPolicy):
        self.spec = spec
        self.fingerprint = {"engine": "sleep", "slots": spec.slots}
        self._waiting: deque[tuple[int, Rollout]] = deque()
        self._slots: list[list[Any]] = []  # [steps left, ticket]
        self._left: dict[int, int] = {}  # ticket -> particles not done
        self._results: dict[int, Rollouts] = {}
        self._seen: set[str] = set()
        self._tickets = 0
        self._hits = 0
        self._row_steps = 0
        self._useful_row_steps = 0

    def submit(self, request: Any) -> int:
        provoke(self.spec.faults, self.spec.marks, request.prompt.prompt_id)
        self._tickets += 1
        ticket = self._tickets
        hit = request.prompt.prompt_id in self._seen
        self._seen.add(request.prompt.prompt_id)
        self._hits += hit
        items = tuple(self._respond(request, particle) for particle in range(request.proposal.num_samples))
        norm = (derive_seed(repr(request.proposal.control)) % 1000) / 100
        self._results[ticket] = Rollouts(
            request.proposal.iteration, items, len(request.prompt.text.split()), norm, prefix_hit=hit
        )
        self._left[ticket] = len(items)
        self._waiting.extend((ticket, item) for item in items)
        return ticket

    def step(self) -> list[tuple[int, Rollouts | Exception]]:
        while self._waiting and len(self._slots) < self.spec.slots:
            ticket, item = self._waiting.popleft()
            self._slots.append([item.num_tokens, ticket])
        time.sleep(self.spec.step_seconds)
        self._row_steps += self.spec.slots
        self._useful_row_steps += len(self._slots)
        done = []
        for slot in self._slots:
            slot[0] -= 1
            if slot[0] <= 0:
                self._left[slot[1]] -= 1
                if self._left[slot[1]] == 0:
                    del self._left[slot[1]]
                    done.append(slot[1])
        self._slots = [slot for slot in self._slots if slot[0] > 0]
        return [(ticket, self._results.pop(ticket)) for ticket in done]

    @property
    def num_pending(self) -> int:
        return len(self._left)

    def stats(self) -> dict[str, float]:
        return {
            "prefix_hits": float(self._hits),
            "prefix_misses": float(self._tickets - self._hits),
            "row_steps": float(self._row_steps),
            "useful_row_steps": float(self._useful_row_steps),
        }

    def _respond(self, request: Any, particle: int) -> Rollout:
        proposal = request.proposal
        names = (request.seed, request.prompt.prompt_id, proposal.iteration, particle, repr(proposal.control))
        seed = derive_seed(*names)
        low, high = self.spec.tokens
        ids = tuple((seed >> shift) % 997 for shift in range(low + seed % (high - low + 1)))
        inner = (seed % 1009) / 1009
        return Rollout(
            particle,
            f"reply {seed:x}",
            ids,
            "stop",
            len(ids),
            control_inner=inner,
            control_square=inner**2,
            logprob=-inner,
        )


@dataclass(frozen=True, kw_only=True)
class SleepReward(RewardSpec):
    """Settings of a reward model that sleeps."""

    call_seconds: float = 0.0005  # seconds of a batch
    response_seconds: float = 0.0  # seconds more for each response
    load_seconds: float = 0.0  # seconds of loading
    faults: dict[str, str] = field(default_factory=dict)  # end of a prompt id -> kind of fault
    marks: str | None = None  # folder that remembers which -once faults happened
    away: str | None = None  # a file: while it exists the service that this model talks to is away

    def load(self, device: str) -> SleepScorer:
        time.sleep(self.load_seconds)
        return SleepScorer(self)


class SleepScorer(Scorer):
    """`rewards.base.Scorer`: a reward between -3 and 3 that depends on the text alone."""

    def __init__(self, spec: SleepReward):
        self.spec = spec

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        for request in requests:
            provoke(self.spec.faults, self.spec.marks, request.prompt.prompt_id)
        if self.spec.away and Path(self.spec.away).exists():
            raise ConnectionError("the service is down")
        count = sum(len(request.responses) for request in requests)
        time.sleep(self.spec.call_seconds + count * self.spec.response_seconds)
        return [self._score(request) for request in requests]

    def describe(self, prompt: Prompt) -> str:
        return f"{prompt.text} / <response>"

    def _score(self, request: ScoreRequest) -> Scores:
        rewards = tuple(
            6 * (derive_seed(request.prompt.prompt_id, text) / 2**64) - 3 if text else math.nan
            for text in request.responses
        )
        return Scores(rewards, (None,) * len(rewards))
