"""A tile: a fixed number of slots stepped by one forward of a fixed shape.

A row's numbers depend on the tile's shape and on the row alone, not on what is beside it. Where the number of slots
does not matter either (`cpu/packing.py`), or may matter (`slots.WIDTHS`), a step runs on no more than the rows need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aisp_ray.engine.cpu.packing import Packing
from aisp_ray.engine.draws import branch, candidates_on, controls, pick, supported, uniforms
from aisp_ray.engine.rowcache import RowCache
from aisp_ray.engine.rows import Found, Row
from aisp_ray.lm.attention import attending
from aisp_ray.lm.head import Head
from aisp_ray.lm.prefixes import Prefix
from aisp_ray.types import Sampling


@dataclass(slots=True)
class StepPlan:
    """What this step's rows need; rebuilt when rows change."""

    # a sampling, the candidates that are ranked for it (None: all), and the rows [B] it holds for
    samplings: list[tuple[Sampling, int | None, Tensor]] = field(default_factory=list)
    controlled: bool = False
    laws: list[tuple[Any, Tensor, Tensor]] = field(default_factory=list)  # law, rows [B], horizons [B]
    wants_base: bool = False
    wants_kl: bool = False
    wants_prelogits: bool = False
    stop_ids: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # ids, rows [B], minima [B]
    branches: tuple[Tensor, Tensor] | None = None  # position of the branch [B] (-1: none), rank [B]
    forced: Tensor | None = None  # [B, length] given tokens, -1 where free

    @classmethod
    def of(cls, rows: Sequence[Row | None], device: Any, length: int) -> StepPlan:
        """length: the longest response. All that a captured step depends on is in an order, and of a size, that does
        not depend on which row sits where."""
        live = [(slot, row) for slot, row in enumerate(rows) if row is not None]
        proposals = [row.active.request.proposal for _, row in live]
        plan = cls()

        def where(chosen: Any) -> Tensor:
            flags = [row is not None and chosen(row) for row in rows]
            return torch.tensor(flags, device=device)

        def values(read: Any, idle: int) -> Tensor:
            return torch.tensor([idle if row is None else read(row) for row in rows], device=device)

        how = lambda row: (row.active.request.proposal.sampling, row.active.ranks_all)  # noqa: E731
        for one in sorted({how(row) for _, row in live}, key=lambda one: (astuple(one[0]), one[1])):
            candidates = None if one[1] else candidates_on(device)
            plan.samplings.append((one[0], candidates, where(lambda row, one=one: how(row) == one)))
        plan.controlled = any(row.active.draws_control for _, row in live)
        plan.wants_base = any(row.active.wants_base for _, row in live)
        plan.wants_kl = any("token_kl" in proposal.want for proposal in proposals)
        plan.wants_prelogits = any("prelogits" in proposal.want for proposal in proposals)
        for law in {id(row.active.law): row.active.law for _, row in live if row.active.law is not None}.values():
            mine = where(lambda row, law=law: row.active.law is law)
            plan.laws.append((law, mine, values(lambda row: row.active.request.proposal.control.reach, 0)))
        early = [row.active.request.stop for _, row in live if row.active.request.stop.min_new_tokens > row.step]
        for ids in sorted({stop.token_ids for stop in early if stop.token_ids}, key=lambda ids: (len(ids), ids)):
            mine = where(lambda row, ids=ids: row.active.request.stop.token_ids == ids)
            forbidden = torch.tensor(ids, device=device)
            plan.stop_ids.append((forbidden, mine, values(lambda row: row.active.request.stop.min_new_tokens, 0)))
        if any(proposal.sampling.branch_first for proposal in proposals):
            first = lambda row: len(row.forced) if row.active.request.proposal.sampling.branch_first else -1  # noqa: E731
            plan.branches = (values(first, -1), values(lambda row: row.particle, 0))
        if any(len(row.forced) > row.step for _, row in live):
            forced = np.full((len(rows), length), -1)
            for slot, row in live:
                forced[slot, : len(row.forced)] = row.forced
            plan.forced = torch.from_numpy(forced).to(device)
        return plan

    @property
    def stays_within(self) -> bool:
        """Whether a row picks among the tokens of the uncontrolled policy's nucleus."""
        return any(sampling.support_top_p < 1 for sampling, _, _ in self.samplings)

    def signature(self) -> tuple:
        """What a captured step depends on besides the values of the plan's tensors."""
        return (
            tuple((sampling, candidates) for sampling, candidates, _ in self.samplings),
            (self.controlled, self.wants_base, self.wants_kl, self.wants_prelogits),
            tuple(len(ids) for ids, _, _ in self.stop_ids),
            self.branches is not None,
            self.forced is not None,
        )

    def tensors(self) -> list[Tensor]:
        """The plan's tensors in a fixed order."""
        found = [mine for _, _, mine in self.samplings] + [t for group in self.stop_ids for t in group]
        return found + [*(self.branches or ())] + ([] if self.forced is None else [self.forced])


@dataclass(frozen=True, slots=True)
class Body:
    """The model as decode steps call it: its attention redirected, its linear layers packed."""

    model: Any
    configs: list[Any]
    packing: Packing


class Tile:
    """Slots, their tensors and the decode step. `ring` steps are drawn ahead.

    A step runs on the first `width` slots, one of `widths`.
    Shapes: B slots, W = width, S = ring, d pre-logit width.
    """

    def __init__(self, body: Body, head: Head, cache: RowCache, ring: int, widths: tuple[int, ...] = ()):
        self.body, self.head, self.cache = body, head, cache
        size, device = cache.suffixes.rows, head.weight.device
        self.device, self.ring = device, ring
        self.suffixes = cache.suffixes
        self.rows: list[Row | None] = [None] * size
        self.hidden = torch.zeros(size, head.dim, dtype=head.dtype, device=device)  # [B, d] pre-logits
        self.control = torch.zeros(ring, size, head.dim, device=device)  # [S, B, d]
        self.control_sums = torch.zeros(ring, size, 2, dtype=torch.float64, device=device)  # [S, B, (u.v, |u|^2)]
        self.uniform = torch.zeros(ring, size, dtype=torch.float64, device=device)  # [S, B]
        self.phase = torch.zeros(1, dtype=torch.int64, device=device)  # of the drawn steps, the one that is next
        self.base_length = torch.zeros(size, dtype=torch.int64, device=device)  # [B] prompt tokens
        self.token = torch.zeros(size, dtype=torch.int64, device=device)  # [B]
        self.widths = widths or (size,)  # ascending, the last is B
        self.width = size
        self.plan = StepPlan()
        self._plan_is_old = self._lanes_are_old = True

    @property
    def live(self) -> list[tuple[int, Row]]:
        return [(slot, row) for slot, row in enumerate(self.rows) if row is not None]

    @property
    def free(self) -> list[int]:
        return [slot for slot, row in enumerate(self.rows) if row is None]

    def room(self, prefix: Prefix) -> int:
        """How many more rows of this prefix fit."""
        free = self.rows.count(None)
        return min(free, self.cache.attention.room(self.owners, prefix)) if free else 0

    @property
    def owners(self) -> list[Prefix | None]:
        return [None if row is None else row.active.prefix for row in self.rows]

    def start(self, slot: int, row: Row, prefix: Prefix, phase: int) -> None:
        """Put a new row into a free slot; its first controls come from the request's common draw."""
        self.rows[slot] = row
        self.hidden[slot].copy_(prefix.hidden)
        self.base_length[slot].fill_(prefix.length)
        self.cache.start_row(slot, prefix, row.snapshot, row.resumed)
        left = self.ring - phase
        active = row.active
        self.control[phase:, slot].zero_()
        self.control_sums[phase:, slot].zero_()
        if active.first_control is not None and active.first_sums is not None:
            self.control[phase:, slot].copy_(active.first_control[:left, row.index])
            self.control_sums[phase:, slot].copy_(active.first_sums[:left, row.index])
        if active.first_uniform is not None:
            self.uniform[phase:, slot].copy_(active.first_uniform[:left, row.index])
        self._changed()

    def move(self, slots: Sequence[int], other: Tile, sources: Sequence[int]) -> None:
        """Take over rows of another tile, or of this one, with all their numbers."""
        for slot, source in zip(slots, sources, strict=True):
            self.rows[slot], other.rows[source] = other.rows[source], None
        to, of = torch.tensor(slots, device=self.device), torch.tensor(sources, device=self.device)
        for name in ("hidden", "base_length", "token"):
            getattr(self, name)[to] = getattr(other, name)[of]
        for name in ("control", "control_sums", "uniform"):
            getattr(self, name)[:, to] = getattr(other, name)[:, of]
        self.cache.copy_rows(to, other.cache, of)
        self._changed()
        other._changed()

    def retire(self, slot: int) -> None:
        self.rows[slot] = None
        self._changed()

    def drop(self) -> None:
        """Let go of everything, for good: whoever still has the tile holds no memory by it."""
        vars(self).clear()

    def _changed(self) -> None:
        self._plan_is_old = self._lanes_are_old = True

    def refresh(self) -> None:
        """Draw the next S steps of every row. Called when the phase is back at 0."""
        old = [(slot, row) for slot, row in self.live if not row.is_new]  # a new row brings its first draw
        slots = self._index(old)
        self.control[:, slots] = 0.0
        self.control_sums[:, slots] = 0.0
        rows = [(slot, row) for slot, row in old if row.active.draws_control]
        rows = [(slot, row) for slot, row in rows if row.step < row.active.request.proposal.control.reach]
        if rows:
            slots = self._index(rows)
            v, sums = controls([row for _, row in rows], self.ring, self.head.dim, self.device)
            self.control[:, slots] = v
            self.control_sums[:, slots] = sums
        rows = [(slot, row) for slot, row in old if row.active.request.proposal.sampling.temperature > 0]
        if rows:
            self.uniform[:, self._index(rows)] = uniforms([row for _, row in rows], self.ring, self.device)

    def _index(self, rows: Sequence[tuple[int, Row]]) -> Tensor:
        return torch.tensor([slot for slot, _ in rows], dtype=torch.int64, device=self.device)

    def fit(self) -> None:
        """Take the smallest width that holds the rows; those behind it move into free slots."""
        count = len(self.rows) - self.rows.count(None)
        width = next(width for width in self.widths if width >= count)
        behind = [slot for slot in range(width, len(self.rows)) if self.rows[slot] is not None]
        if behind:
            self.move([slot for slot in range(width) if self.rows[slot] is None][: len(behind)], self, behind)
        if width != self.width:
            self.width = width
            self._changed()

    def plan_rows(self) -> None:
        """Bring the plan up to date, which `pick` goes by."""
        if self._plan_is_old:
            self.plan = StepPlan.of(self.rows[: self.width], self.device, self.suffixes.length)
            self._plan_is_old = False

    def place_lanes(self) -> None:
        """Bring the lanes up to date, which `forward` goes by."""
        if self._lanes_are_old:
            self.cache.attention.assign(self.owners[: self.width])
            self._lanes_are_old = False

    def pick(self, phase: int | Tensor) -> dict[str, Tensor]:
        """Choose the next token of every row. phase: of the drawn steps, this one. Returns tensors [W] by name,
        `token` among them."""
        plan, hidden, at = self.plan, self.hidden[: self.width], self.suffixes.step[: self.width]
        found: dict[str, Tensor] = {}
        z = hidden.float() + self.drawn(self.control, phase) if plan.controlled else hidden
        for law, mine, horizon in plan.laws:
            # anybody's code: it always sees the whole tile
            u = law(self.hidden.float())[: self.width] * (mine & (at < horizon))[:, None]
            z = z.float() + u
            square = u.double().square().sum(-1)
            found["feedback"] = found["feedback"] + square if "feedback" in found else square
        with self.body.packing.used():
            logits = self.head(z)  # [W, V]
            base = self.head(hidden) if (plan.wants_base or plan.stays_within) and z is not hidden else logits
        allowed = logits
        for ids, mine, minimum in plan.stop_ids:
            allowed = allowed.clone() if allowed is logits else allowed
            early = (mine & (at < minimum))[:, None]
            allowed[:, ids] = torch.where(early, -torch.inf, allowed[:, ids])
        draws = any(sampling.temperature > 0 for sampling, _, _ in plan.samplings)
        drawn = self.drawn(self.uniform, phase) if draws else None
        token = self._token(allowed, base, drawn, at)
        self.token[: self.width].copy_(token.clamp(min=0))  # of a row whose logits are no numbers: any
        found["token"] = token
        if plan.wants_base:
            chosen = base.gather(1, token.clamp(min=0)[:, None])
            log_mass = base.logsumexp(-1, keepdim=True)
            found["logit"] = chosen[:, 0]
            found["logprob"] = (chosen - log_mass)[:, 0]
            if plan.wants_kl:
                log_base, log_steered = base - log_mass, logits.log_softmax(-1)
                found["token_kl"] = (log_steered.exp() * (log_steered - log_base)).sum(-1)
        if plan.wants_prelogits:
            found["prelogits"] = hidden.clone()
        return found

    def drawn(self, tensor: Tensor, phase: int | Tensor) -> Tensor:
        """Of numbers drawn ahead [S, B, ...], those of a step, [W, ...]."""
        return (tensor[phase] if isinstance(phase, int) else tensor.index_select(0, phase)[0])[: self.width]

    def _token(self, allowed: Tensor, base: Tensor, drawn: Tensor | None, at: Tensor) -> Tensor:
        plan = self.plan
        token = torch.zeros_like(at)
        for number, (sampling, candidates, mine) in enumerate(plan.samplings):
            within = sampling.support_top_p
            choice = supported(allowed, base, within) if within < 1 else allowed
            picked = pick(choice, sampling, drawn, candidates)
            token = torch.where(mine, picked, token) if number else picked
        if plan.branches is not None:
            first, rank = plan.branches
            token = torch.where(first == at, branch(allowed, rank), token)
        if plan.forced is not None:
            width = plan.forced.shape[1]
            given = plan.forced.gather(1, at.clamp(max=width - 1)[:, None])[:, 0]
            token = torch.where((given >= 0) & (at < width), given, token)
        return token

    def step(self, num_blocks: int) -> Found:
        """One step of those drawn, without a look at the host."""
        found = Found.of(self.pick(self.phase), self.drawn(self.control_sums, self.phase))
        self.forward(num_blocks)
        self.phase.add_(1).remainder_(self.ring)
        return found

    def state(self) -> list[Tensor]:
        """Every tensor that a step changes and the next one reads."""
        return [self.hidden, self.token, self.suffixes.step, self.phase, *self.cache.states()]

    def forward(self, num_blocks: int) -> None:
        """Run the body on the picked tokens: pre-logits of every row's next position. num_blocks: of suffixes read."""
        self.hidden[: self.width].copy_(self._run_body(num_blocks))
        self.suffixes.step[: self.width].add_(1).clamp_(max=self.suffixes.length - 1)

    def _run_body(self, num_blocks: int) -> Tensor:
        """What the body makes of the picked tokens, [W, d]; writes keys, values and states only."""
        width = self.width
        self.cache.begin_step(num_blocks, width)
        position = (self.base_length[:width] + self.suffixes.step[:width])[:, None]
        with attending(self.body.configs, self.cache.attention.attend), self.body.packing.used():
            out = self.body.model.base_model(
                input_ids=self.token[:width, None], position_ids=position, past_key_values=self.cache, use_cache=True
            )
        return out.last_hidden_state[:, -1]
