"""The engine's bookkeeping on the host: a request in flight, its rows, and what a step's numbers mean for them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aisp_ray.controls.laws import Feedback, OpenLoop
from aisp_ray.engine.base import Decode, RolloutRequest
from aisp_ray.lm.prefixes import Prefix
from aisp_ray.lm.snapshots import Snapshot
from aisp_ray.types import Rollout, Rollouts

STRING_CHECK = 4  # tokens between two searches of a row's text for stop strings
BROKEN = -1  # in place of a token: the row's logits are NaN or infinite
BEYOND = -2  # in place of a token: it may lie behind the candidates that were ranked


@dataclass(slots=True, eq=False)
class Row:
    """One particle of a request: waiting, in a slot, or finished."""

    active: Active
    particle: int
    index: int  # among the request's rows
    forced: tuple[int, ...]  # the response prefix that it continues
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    terms: list[tuple[float, float, float, float]] = field(default_factory=list)  # u.v, |u|^2, logprob, KL a position
    first_logit: float = math.nan
    prelogits: list[np.ndarray] = field(default_factory=list)
    checked: int = 0  # tokens whose text was searched for stop strings
    snapshot: Snapshot | None = None  # what it starts with, over its first `resumed` tokens
    resumed: int = 0

    def resume(self, snapshot: Snapshot | None, count: int) -> None:
        """Start behind the first `count` given tokens, whose keys and values are at hand."""
        self.snapshot, self.resumed = snapshot, count
        self.tokens = list(self.forced[:count])

    @property
    def is_new(self) -> bool:
        """Whether it has not been stepped since it was put into a slot."""
        return len(self.tokens) == self.resumed

    @property
    def step(self) -> int:
        """The response position that is decoded next."""
        return len(self.tokens)

    def reset(self) -> None:
        """Back to the queue, as if never started. Everything about a row is named, so it ends as it would have."""
        self.tokens, self.terms, self.prelogits = list(self.forced[: self.resumed]), [], []
        self.finish, self.checked, self.first_logit = None, 0, math.nan

    def cut(self, num_tokens: int) -> None:
        """Forget what was decoded behind the first `num_tokens`."""
        del self.tokens[num_tokens:]
        kept = num_tokens - len(self.forced)
        del self.terms[kept:], self.prelogits[kept:]

    def result(self) -> Rollout:
        want = self.active.request.proposal.want
        inner, square, logprob, token_kl = (sum(column) for column in zip((0.0,) * 4, *self.terms, strict=True))
        return Rollout(
            particle=self.particle,
            text="",  # the policy decodes
            token_ids=tuple(self.tokens),
            finish_reason=self.finish or "length",
            num_generated_tokens=max(len(self.tokens) - len(self.forced), 0),
            control_inner=inner,
            control_square=square,
            logprob=logprob if "logprob" in want else math.nan,
            token_kl=token_kl if "token_kl" in want else math.nan,
            first_logit=self.first_logit,
            prelogits=np.stack(self.prelogits) if self.prelogits else None,
        )


@dataclass(slots=True, eq=False)
class Active:
    """A request in flight."""

    ticket: int
    request: RolloutRequest
    rows: list[Row] = field(default_factory=list)
    waiting: deque[Row] = field(default_factory=deque)
    read: Prefix | None = None
    prefix_hit: bool = False
    mean: Tensor | None = None  # U, float32 [horizon, d]
    control_norm: float = 0.0
    law: Callable[[Tensor], Tensor] | None = None
    first_control: Tensor | None = None  # [S, rows, d]: the first steps' control, drawn for all rows at once
    first_sums: Tensor | None = None  # float64 [S, rows, 2]: u.v and |u|^2 of the same
    first_uniform: Tensor | None = None  # float64 [S, rows]
    ranks_all: bool = False  # its tokens are drawn from the whole vocabulary, ranked: a few candidates did not do
    num_done: int = 0
    seconds: float = 0.0
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        proposal = self.request.proposal
        who = self.request.particles if self.request.particles is not None else range(proposal.num_samples)
        prefixes = proposal.prefixes or ((),) * proposal.num_samples
        self.rows = [Row(self, particle, i, tuple(prefixes[particle])) for i, particle in enumerate(who)]
        self.waiting = deque(self.rows)
        self.stop_ids = frozenset(self.request.stop.token_ids)

    @property
    def prefix(self) -> Prefix:
        """The prompt that its rows continue."""
        assert self.read is not None, "the request has not begun"
        return self.read

    @property
    def draws_control(self) -> bool:
        """Whether something known before decoding is added to the pre-logits."""
        control = self.request.proposal.control
        return isinstance(control, OpenLoop) and control.reach > 0 and (control.sigma > 0 or self.mean is not None)

    @property
    def feeds_back(self) -> bool:
        return isinstance(self.request.proposal.control, Feedback)

    @property
    def may_be_continued(self) -> bool:
        """Whether its rows are worth a snapshot: the method builds responses piece by piece."""
        return self.request.proposal.prefixes is not None or self.request.proposal.sampling.branch_first

    @property
    def wants_base(self) -> bool:
        """Whether the uncontrolled logits are read."""
        proposal = self.request.proposal
        return bool(proposal.want & {"logprob", "token_kl"}) or proposal.sampling.branch_first

    @property
    def has_terms(self) -> bool:
        """Whether a row's positions have anything to sum."""
        return self.wants_base or self.feeds_back or self.mean is not None

    def rollouts(self) -> Rollouts:
        return Rollouts(
            iteration=self.request.proposal.iteration,
            items=tuple(row.result() for row in self.rows),
            num_prompt_tokens=len(self.request.prompt_ids),
            control_norm=self.control_norm,
            seconds=self.seconds,
            prefix_hit=self.prefix_hit,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What one or several steps found, on the device. numbers: float64 [S, W, len(names)]; prelogits: [S, W, d]."""

    names: tuple[str, ...]  # token, inner and square first
    numbers: Tensor
    prelogits: Tensor | None = None

    @classmethod
    def of(cls, found: dict[str, Tensor], sums: Tensor) -> Found:
        """One step's tensors [W] by name and its control sums [W, 2]."""
        columns = {"token": found["token"], "inner": sums[:, 0], "square": sums[:, 1]}
        columns |= {name: found[name] for name in found if name not in ("token", "prelogits")}
        numbers = torch.stack([column.double() for column in columns.values()], -1)
        prelogits = found.get("prelogits")
        return cls(tuple(columns), numbers[None], None if prelogits is None else prelogits[None])

    def steps(self, start: int, stop: int) -> Found:
        prelogits = None if self.prelogits is None else self.prelogits[start:stop]
        return Found(self.names, self.numbers[start:stop], prelogits)


class Readout:
    """What steps found, brought to the host in one copy; from a GPU without waiting for it, until it is read."""

    def __init__(self, found: Found):
        self.names = found.names
        self._event: Any = None
        self._numbers, self._prelogits = found.numbers, found.prelogits
        if found.numbers.is_cuda:
            self._numbers = _to_pinned(found.numbers)
            self._prelogits = None if found.prelogits is None else _to_pinned(found.prelogits)
            self._event = torch.cuda.Event()
            self._event.record()
        self._columns: dict[str, list[list[float]]] = {}

    def wait(self) -> Readout:
        """Until it is here."""
        if self._event is not None:
            self._event.synchronize()
        numbers = self._numbers.numpy()  # [S, W, names]
        self._host = numbers
        self.tokens: list[list[int]] = numbers[:, :, 0].astype(np.int64).T.tolist()  # [W][S]
        return self

    def __len__(self) -> int:
        return len(self._numbers)

    def column(self, name: str, slot: int) -> list[float]:
        """A row's numbers of a name, 0 where they are not computed, [S]."""
        if name not in self.names:
            return [0.0] * len(self)
        if name not in self._columns:
            self._columns[name] = self._host[:, :, self.names.index(name)].T.tolist()
        return self._columns[name][slot]

    def terms(self, slot: int, feeds_back: bool) -> list[tuple[float, float, float, float]]:
        """(u.v, |u|^2, log-probability, KL) of a row's positions, [S]."""
        sums = ("feedback", "feedback") if feeds_back else ("inner", "square")
        return list(zip(*(self.column(name, slot) for name in (*sums, "logprob", "token_kl")), strict=True))

    def prelogits(self, step: int, slot: int) -> np.ndarray:
        assert self._prelogits is not None, "the plan does not want them"
        return self._prelogits[step, slot].float().numpy().copy()


def _to_pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned memory of the host, which is whole when the device has come so far."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def take(row: Row, readout: Readout, slot: int, decode: Decode | None) -> int:
    """Append the row's tokens of all steps up to the one that ends it, which sets `row.finish`; returns how many.

    Tokens from the first one on that is none (`BROKEN`, `BEYOND`) are left.
    """
    active, start = row.active, len(row.tokens)
    tokens = readout.tokens[slot][: active.request.max_new_tokens - start]
    if min(tokens) < 0:
        tokens = tokens[: next(i for i, token in enumerate(tokens) if token < 0)]
    if decode is not None and active.request.stop.strings:
        count = _take_searched(row, tokens, decode)
    else:
        count = _take_all(row, tokens)
    given = min(max(len(row.forced) - start, 0), count)
    kept = len(row.tokens) - start  # a stop string may have cut off what was taken
    if kept <= given:
        return count
    if active.has_terms:
        row.terms += readout.terms(slot, active.feeds_back)[given:kept]
    if active.wants_base and start <= len(row.forced):
        row.first_logit = readout.column("logit", slot)[given]
    if "prelogits" in active.request.proposal.want:
        row.prelogits += [readout.prelogits(step, slot) for step in range(given, kept)]
    return count


def _take_all(row: Row, tokens: list[int]) -> int:
    ends = row.active.stop_ids
    count = len(tokens)
    if not ends.isdisjoint(tokens[max(len(row.forced) - len(row.tokens), 0) :]):
        given = max(len(row.forced) - len(row.tokens), 0)
        count = next(i for i in range(given, count) if tokens[i] in ends) + 1
        row.finish = "stop"
    row.tokens += tokens[:count]
    if row.finish is None and len(row.tokens) >= row.active.request.max_new_tokens:
        row.finish = "length"
    return count


def _take_searched(row: Row, tokens: list[int], decode: Decode) -> int:
    for count, token in enumerate(tokens, 1):
        row.tokens.append(token)
        if len(row.tokens) > len(row.forced):
            _end(row, decode)
        if row.finish is not None:
            return count
    return len(tokens)


def _end(row: Row, decode: Decode) -> None:
    active, count = row.active, len(row.tokens)
    last = count >= active.request.max_new_tokens
    stopped = row.tokens[-1] in active.stop_ids
    due = stopped or last or count - row.checked >= STRING_CHECK
    if due:
        cut = _string_end(row, decode)
        if cut is not None and not (stopped and cut == count):
            row.cut(cut)
            row.finish = "stop_string"
            return
        row.checked = count
    if stopped:
        row.finish = "stop"
    elif last:
        row.finish = "length"


def _string_end(row: Row, decode: Decode) -> int | None:
    """The smallest number of tokens, not searched before, whose text has a stop string."""
    stop = row.active.request.stop

    def found(count: int) -> bool:
        tokens = row.tokens[:count]
        return stop.string_start(decode(tokens), tokens, decode) is not None

    if not found(len(row.tokens)):
        return None
    start = max(row.checked, len(row.forced), stop.min_new_tokens - 1) + 1
    return next((count for count in range(start, len(row.tokens) + 1) if found(count)), None)
