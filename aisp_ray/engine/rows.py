"""The engine's bookkeeping on the host: a request in flight, its rows, and what a step's numbers mean for them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from aisp_ray.controls.laws import Feedback, OpenLoop
from aisp_ray.engine.base import Decode, RolloutRequest
from aisp_ray.lm.prefixes import Prefix
from aisp_ray.lm.snapshots import Snapshot
from aisp_ray.types import Rollout, Rollouts

STRING_CHECK = 4  # tokens between two searches of a row's text for stop strings


@dataclass(slots=True, eq=False)
class Row:
    """One particle of a request: waiting, in a slot, or finished."""

    active: Active
    particle: int
    index: int  # among the request's rows
    forced: tuple[int, ...]  # the response prefix it goes on from
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
    first_sums: np.ndarray | None = None  # float64 [S, rows, 2]: u.v and |u|^2 of the same
    first_uniform: Tensor | None = None  # float64 [S, rows]
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


class Readout:
    """The tensors of one or several steps, [S, B] by name, brought to the host at once."""

    def __init__(self, found: dict[str, Tensor], control_sums: np.ndarray):
        self.tokens: list[list[int]] = found["token"].tolist()
        self._columns = {n: found[n].double().tolist() for n in found if n not in ("token", "prelogits")}
        self._control = control_sums.tolist()  # [S, B, 2]
        self._prelogits = found["prelogits"].float().cpu().numpy() if "prelogits" in found else None

    def __len__(self) -> int:
        return len(self.tokens)

    def terms(self, step: int, slot: int, feeds_back: bool) -> tuple[float, float, float, float]:
        """(u.v, |u|^2, log-probability, KL) of a position."""
        read = lambda name: self._columns[name][step][slot] if name in self._columns else 0.0  # noqa: E731
        inner, square = (read("feedback"),) * 2 if feeds_back else self._control[step][slot]
        return inner, square, read("logprob"), read("token_kl")

    def logit(self, step: int, slot: int) -> float:
        return self._columns["logit"][step][slot]

    def prelogits(self, step: int, slot: int) -> np.ndarray:
        assert self._prelogits is not None, "the plan does not want them"
        return self._prelogits[step, slot].copy()


def take(row: Row, readout: Readout, step: int, slot: int, decode: Decode | None) -> None:
    """Append the row's token of a step, and set `row.finish` if that ends it."""
    active = row.active
    row.tokens.append(readout.tokens[step][slot])
    if len(row.tokens) <= len(row.forced):
        return  # given, not generated
    if active.has_terms:
        row.terms.append(readout.terms(step, slot, active.feeds_back))
    if active.wants_base and len(row.tokens) == len(row.forced) + 1:
        row.first_logit = readout.logit(step, slot)
    if "prelogits" in active.request.proposal.want:
        row.prelogits.append(readout.prelogits(step, slot))
    _end(row, decode)


def _end(row: Row, decode: Decode | None) -> None:
    active, count = row.active, len(row.tokens)
    last = count >= active.request.max_new_tokens
    stopped = row.tokens[-1] in active.stop_ids
    due = stopped or last or count - row.checked >= STRING_CHECK
    if due and decode is not None and active.request.stop.strings:
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
