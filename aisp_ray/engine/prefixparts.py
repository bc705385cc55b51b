"""The prefix's share of the attention of a tile's rows, in two ways that give the same up to rounding.

`LoopedPrefixes`: a loop over the lanes, each with its own prompt's keys in place and at its true length. Nothing is
copied or padded; best where calls are cheap (CPU).
`StackedPrefixes`: the lanes' keys side by side in one buffer of fixed capacity, one batched product for all. Fixed
addresses and shapes, so a step can be captured (CUDA).

A lane is up to `LANE` rows of one prompt. Shapes: B rows, G = LANE, g query heads a key-value head, L prompt keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from aisp_ray.engine.attention import Part, fused, partial
from aisp_ray.engine.prefixes import LayerLayout, Prefix

LANE = 16  # rows of one prompt that share a product with its keys
HIDDEN = -1e30  # added to the logit of a key that a row may not see: finite, so that a span with none stays a number
_FUSED_DTYPES = (torch.float32, torch.bfloat16)


class PrefixPart(Protocol):
    """What a tile's cache asks about prefixes."""

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        """Say which prefix each of the B rows goes on from (None: an idle row). Called when rows change."""

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        """How many more rows of this prefix the lanes can take."""

    def part(self, layer_index: int, query: Tensor, softcap: float | None) -> Part:
        """The prefix's share for all rows. query: scaled, [B, Hkv, g, D]."""

    def begin_step(self) -> None:
        """Positions have moved on."""

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values that are held apart from the store."""


class Lanes:
    """Rows of a prompt in lanes of `LANE`, so a product with the prompt's keys always has the same shape."""

    def __init__(self, rows: int, step: Tensor, length: int, layouts: Sequence[LayerLayout | None]):
        self.rows, self.step, self.length, self.layouts = rows, step, length, layouts
        self.lanes: list[Prefix] = []
        self.memo: dict[Any, Tensor] = {}
        self._moved: dict[Any, Tensor] = {}

    def group(self, owners: Sequence[Prefix | None]) -> list[tuple[Prefix, list[int]]]:
        """The lanes' prefixes with their rows, at most LANE each."""
        groups: dict[int, tuple[Prefix, list[int]]] = {}
        for row, prefix in enumerate(owners):
            if prefix is not None:
                groups.setdefault(id(prefix), (prefix, []))[1].append(row)
        return [
            (prefix, members[start : start + LANE])
            for prefix, members in groups.values()
            for start in range(0, len(members), LANE)
        ]

    def begin_step(self) -> None:
        self.memo.clear()

    def on(self, tensor: Tensor, device: torch.device) -> Tensor:
        """An index tensor on a layer's device."""
        if tensor.device == device:
            return tensor
        name = (id(tensor), device)
        if name not in self._moved:
            self._moved[name] = tensor.to(device)
        return self._moved[name]

    def forget_copies(self) -> None:
        self._moved.clear()


def indices(lanes: Sequence[tuple[Prefix, list[int]]], rows: int) -> tuple[list[int], list[int]]:
    """(row of each place of the lanes, place of each row). Places left over repeat the lane's first row."""
    gather: list[int] = []
    scatter = [0] * rows
    for _, members in lanes:
        for place, row in enumerate(members):
            scatter[row] = len(gather) + place
        gather += members + [members[0]] * (LANE - len(members))
    return gather, scatter


def window_mask(at: Tensor, index: Tensor, window: int) -> Tensor | None:
    """`HIDDEN` where a key at position `index` [..., L] lies before the window of a query at `at` [..., 1], else 0."""
    return (index <= at - window) * HIDDEN


def to_lanes(query: Tensor, gather: Tensor) -> Tensor:
    """[B, Hkv, g, D] -> [lanes, Hkv, G * g, D]."""
    _, heads, group, dim = query.shape
    lanes = query.index_select(0, gather).view(-1, LANE, heads, group, dim).transpose(1, 2)
    return lanes.reshape(-1, heads, LANE * group, dim)


def to_rows(lanes: Tensor, scatter: Tensor, group: int) -> Tensor:
    """[lanes, Hkv, G * g, X] -> [B, Hkv, g, X]."""
    count, heads, _, width = lanes.shape
    rows = lanes.view(count, heads, LANE, group, width).transpose(1, 2).reshape(-1, heads, group, width)
    return rows.index_select(0, scatter)


class LoopedPrefixes(Lanes):
    """One product a lane, on the prompt's own tensors."""

    num_bytes = 0

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        lanes = self.group(owners)
        self.lanes = [prefix for prefix, _ in lanes]
        gather, scatter = indices(lanes, self.rows)
        self._gather = torch.tensor(gather, dtype=torch.int64, device=self.step.device)
        self._scatter = torch.tensor(scatter, dtype=torch.int64, device=self.step.device)
        self.forget_copies()

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        return self.rows

    def part(self, layer_index: int, query: Tensor, softcap: float | None) -> Part:
        group, device = query.shape[2], query.device
        lanes = to_lanes(query, self.on(self._gather, device))
        parts = []
        for lane, prefix in enumerate(self.lanes):
            keys, values = prefix.keys[layer_index], prefix.values[layer_index]
            mask = self._mask(lane, layer_index, group, device)
            one = lanes[lane : lane + 1]
            if softcap is None and keys.dtype in _FUSED_DTYPES and keys.is_cpu and keys.shape == values.shape:
                parts.append(fused(one, keys, values, mask if mask is None else mask.to(query.dtype)))
            else:
                parts.append(partial(one, keys, values, mask, softcap))
        scatter = self.on(self._scatter, device)
        joined = parts[0] if len(parts) == 1 else [torch.cat([part[i] for part in parts]) for i in (0, 1)]
        return to_rows(joined[0], scatter, group).float(), to_rows(joined[1], scatter, group)

    def _mask(self, lane: int, layer_index: int, group: int, device: torch.device) -> Tensor | None:
        """Which keys the rows of a lane still see through the layer's window, float32 [1, 1, G * g, L]."""
        prefix, window = self.lanes[lane], self.layouts[layer_index].window
        if window is None or prefix.length + self.length <= window:
            return None
        name = (lane, window, group, device)
        if name not in self.memo:
            members = self.on(self._gather, device)[lane * LANE : (lane + 1) * LANE]
            at = self.step.to(device)[members] + prefix.length  # [G]
            start, count = prefix.starts[layer_index], prefix.keys[layer_index].shape[-2]
            hidden = window_mask(at[:, None], torch.arange(start, start + count, device=device), window)  # [G, L]
            if hidden is None:
                return None
            self.memo[name] = hidden.repeat_interleave(group, 0)[None, None]
        return self.memo[name]


class StackedPrefixes(Lanes):
    """All lanes in one buffer of `capacity` keys: [lanes, Hkv, capacity, D] a layer, at fixed addresses.

    capacity: the longest prompt that fits. A product's shape, and so its rounding, depends on it.
    """

    def __init__(self, rows: int, step: Tensor, length: int, layouts: Sequence[LayerLayout | None], capacity: int):
        super().__init__(rows, step, length, layouts)
        self.capacity = capacity
        self.num_lanes = max(2 * (-(-rows // LANE)), 2)
        self._held: list[tuple[int, ...] | None] = [None] * self.num_lanes
        self._gather = torch.zeros(self.num_lanes * LANE, dtype=torch.int64, device=step.device)
        self._scatter = torch.zeros(rows, dtype=torch.int64, device=step.device)
        self._lengths = torch.ones(self.num_lanes, dtype=torch.int64, device=step.device)
        self._starts = torch.zeros(len(layouts), self.num_lanes, dtype=torch.int64, device=step.device)
        self._keys = [self._buffer(layout, "key_dim") for layout in layouts]
        self._values = [self._buffer(layout, "value_dim") for layout in layouts]

    def _buffer(self, layout: LayerLayout | None, width: str) -> Tensor | None:
        if layout is None:
            return None
        kept = self.capacity if layout.window is None else min(self.capacity, layout.window - 1)
        shape = (self.num_lanes, layout.num_heads, kept, getattr(layout, width))
        return torch.zeros(shape, dtype=layout.dtype, device=layout.device)

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for t in (*self._keys, *self._values) if t is not None)

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        if prefix.length > self.capacity:
            return 0
        lanes = self.group(owners)
        spare = sum(LANE - len(members) for owner, members in lanes if owner is prefix)
        return spare + LANE * (self.num_lanes - len(lanes))

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        """Keep prefixes in the lane that holds them already; copy the others in."""
        waiting = self.group(owners)
        placed: list[tuple[Prefix, list[int]] | None] = [None] * self.num_lanes
        for lane, held in enumerate(self._held):
            found = next((one for one in waiting if one[0].ids == held), None)
            if found is not None:
                placed[lane] = found
                waiting.remove(found)
        for one in waiting:
            lane = placed.index(None)
            placed[lane] = one
            self._copy_in(lane, one[0])
        gather, scatter = [0] * (self.num_lanes * LANE), [0] * self.rows
        for lane, one in enumerate(placed):
            for place, row in enumerate(one[1] if one is not None else ()):
                gather[lane * LANE + place] = row
                scatter[row] = lane * LANE + place
        self._gather.copy_(torch.tensor(gather))
        self._scatter.copy_(torch.tensor(scatter))
        self.forget_copies()

    def _copy_in(self, lane: int, prefix: Prefix) -> None:
        self._held[lane] = prefix.ids
        self._lengths[lane] = prefix.length
        for index, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            if keys is not None:
                count = keys.shape[-2]
                self._keys[index][lane, :, :count].copy_(keys[0])
                self._values[index][lane, :, :count].copy_(values[0])
                self._starts[index, lane] = prefix.starts[index]

    def part(self, layer_index: int, query: Tensor, softcap: float | None) -> Part:
        group, device = query.shape[2], query.device
        lanes = to_lanes(query, self.on(self._gather, device))
        mask = self._mask(layer_index, group, device)
        found = partial(lanes, self._keys[layer_index], self._values[layer_index], mask, softcap)
        scatter = self.on(self._scatter, device)
        return to_rows(found[0], scatter, group), to_rows(found[1], scatter, group)

    def _mask(self, layer_index: int, group: int, device: torch.device) -> Tensor:
        """`HIDDEN` behind a lane's prompt and before the window, float32 [lanes, 1, G * g or 1, L]."""
        window, kept = self.layouts[layer_index].window, self._keys[layer_index].shape[-2]
        name = (window, kept, group, device)
        if name not in self.memo:
            length, start = self._lengths.to(device), self._starts[layer_index].to(device)
            index = start[:, None] + torch.arange(kept, device=device)  # [lanes, L] positions
            mask = ((index >= length[:, None]) * HIDDEN)[:, None, None, :]
            if window is not None:
                at = (self.step.to(device)[self.on(self._gather, device)].view(-1, LANE) + length[:, None])[:, :, None]
                hidden = window_mask(at, index[:, None, :], window)  # [lanes, G, L]
                if hidden is not None:
                    mask = mask + hidden.repeat_interleave(group, 1)[:, None]
            self.memo[name] = mask
        return self.memo[name]
