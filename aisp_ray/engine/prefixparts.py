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

import numpy as np
import torch
from torch import Tensor

from aisp_ray.lm.attention import HIDDEN, Part, fused, partial
from aisp_ray.lm.prefixes import LayerLayout, Prefix

LANE = 16  # rows of one prompt that share a product with its keys
_LANE_WIDTHS = (2, 4, 6, 8, 10, 12, 14)  # of lanes that are not full, where the bits are those of a full one
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

    def group(self, owners: Sequence[Prefix | None], most: int = LANE) -> list[tuple[Prefix, list[int]]]:
        """The lanes' prefixes with their rows, at most `most` each."""
        groups: dict[int, tuple[Prefix, list[int]]] = {}
        for row, prefix in enumerate(owners):
            if prefix is not None:
                groups.setdefault(id(prefix), (prefix, []))[1].append(row)
        return [
            (prefix, members[start : start + most])
            for prefix, members in groups.values()
            for start in range(0, len(members), most)
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
    """One product a lane, on the prompt's own tensors. A lane that is not full is computed as narrow as its rows allow
    and its bits stay the same, which is tried out once for each prompt length."""

    num_bytes = 0

    def __init__(self, rows: int, step: Tensor, length: int, layouts: Sequence[LayerLayout | None]):
        super().__init__(rows, step, length, layouts)
        self._rows: list[list[int]] = []  # of each lane, the first repeated where the lane has more places
        self._scatter: list[int] = []  # place of each row
        self.kinds: dict[int, tuple[int, float | None]] = {}  # by layer: query heads a group, soft-cap
        self._equal: dict[int, tuple[int, ...]] = {}  # by prompt length: widths that give a full lane's bits
        self._placed: dict[Any, Tensor] = {}  # index tensors, until rows change

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        lanes = self.group(owners)
        self.lanes = [prefix for prefix, _ in lanes]
        self._rows, self._scatter, place = [], [0] * len(owners), 0
        for prefix, members in lanes:
            width = next(width for width in self._widths(prefix) if width >= len(members))
            for i, row in enumerate(members):
                self._scatter[row] = place + i
            self._rows.append(members + members[:1] * (width - len(members)))
            place += width
        self._placed.clear()

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        return self.rows

    def part(self, layer_index: int, query: Tensor, softcap: float | None) -> Part:
        heads, group, dim = query.shape[1:]
        self.kinds[layer_index] = (group, softcap)
        gather, scatter = self._indices(heads, group, query.device)
        flat, start, parts = query.reshape(-1, group, dim).index_select(0, gather), 0, []
        for lane, (prefix, rows) in enumerate(zip(self.lanes, self._rows, strict=True)):
            one = flat[start : start + heads * len(rows)].view(1, heads, -1, dim)  # [1, Hkv, rows * g, D]
            start += heads * len(rows)
            mask = self._mask(lane, layer_index, group, query.device)
            parts.append(_product(one, prefix.keys[layer_index], prefix.values[layer_index], mask, softcap))
        joined = [torch.cat([part[i].transpose(1, 2) for part in parts], 1) for i in (0, 1)]  # [1, places * g, Hkv, X]
        rows = [t.view(-1, t.shape[-1]).index_select(0, scatter).view(-1, heads, group, t.shape[-1]) for t in joined]
        return rows[0].float(), rows[1]

    def _indices(self, heads: int, group: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where the lanes' queries come from in [B * Hkv], head by head, and where each (row, head, query) went."""
        name = (heads, group, device)
        if ("gather", *name) not in self._placed:
            head = np.arange(heads)[:, None]
            at = np.concatenate([(np.array(rows) * heads + head).ravel() for rows in self._rows])  # [lanes, Hkv, rows]
            to = np.array(self._scatter)[:, None, None] * group + np.arange(group)  # [B, 1, g]
            to = (to * heads + head).ravel()  # [B, Hkv, g]
            self._placed["gather", *name] = torch.from_numpy(at).to(device)
            self._placed["scatter", *name] = torch.from_numpy(to).to(device)
        return self._placed["gather", *name], self._placed["scatter", *name]

    def _widths(self, prefix: Prefix) -> tuple[int, ...]:
        """Rows that a lane of this prefix may have, ascending. The first step of all has full lanes and shows what the
        layers ask for."""
        if len(self.kinds) < sum(layout is not None for layout in self.layouts):
            return (LANE,)
        if prefix.length not in self._equal:
            found, kinds = list(_LANE_WIDTHS), set()
            for index, (group, softcap) in self.kinds.items():
                keys, values, masked = prefix.keys[index], prefix.values[index], self._is_masked(prefix, index)
                kind = (keys.shape, values.shape, keys.dtype, group, softcap, masked)
                if kind not in kinds:
                    kinds.add(kind)
                    found = [width for width in found if width in equal_lanes(keys, values, group, softcap, masked)]
            self._equal[prefix.length] = (*found, LANE)
        return self._equal[prefix.length]

    def _is_masked(self, prefix: Prefix, layer_index: int) -> bool:
        window = self.layouts[layer_index].window
        return window is not None and prefix.length + self.length > window

    def _mask(self, lane: int, layer_index: int, group: int, device: torch.device) -> Tensor | None:
        """Which keys the rows of a lane still see through the layer's window, float32 [1, 1, rows * g, L]."""
        prefix, window = self.lanes[lane], self.layouts[layer_index].window
        if not self._is_masked(prefix, layer_index):
            return None
        name = (lane, window, group, device)
        if name not in self.memo:
            at = self.step.to(device)[self._rows[lane]] + prefix.length  # [rows]
            start, count = prefix.starts[layer_index], prefix.keys[layer_index].shape[-2]
            hidden = window_mask(at[:, None], torch.arange(start, start + count, device=device), window)  # [rows, L]
            if hidden is None:
                return None
            self.memo[name] = hidden.repeat_interleave(group, 0)[None, None]
        return self.memo[name]


def equal_lanes(keys: Tensor, values: Tensor, group: int, softcap: float | None, masked: bool) -> list[int]:
    """Rows of a lane that come out bit for bit as in a full one: random queries on a prompt's keys [1, Hkv, L, D]."""
    heads, count, dim = keys.shape[1:]
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, heads, LANE * group, dim, generator=draw).to(keys)
    mask = torch.zeros(1, 1, LANE * group, count, device=keys.device) if masked else None
    if mask is not None and count > 1:
        mask[..., 0] = HIDDEN
    whole = _product(query, keys, values, mask, softcap)
    found = []
    for width in _LANE_WIDTHS:
        some = width * group
        part = _product(query[:, :, :some].clone(), keys, values, mask if mask is None else mask[:, :, :some], softcap)
        if all(torch.equal(mine, theirs[:, :, :some]) for mine, theirs in zip(part, whole, strict=True)):
            found.append(width)
    return found


def _product(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, softcap: float | None) -> Part:
    """Attention of one lane [1, Hkv, rows * g, D] over its prompt."""
    if softcap is None and keys.dtype in _FUSED_DTYPES and keys.is_cpu and keys.shape == values.shape:
        return fused(query, keys, values, mask if mask is None else mask.to(query.dtype))
    return partial(query, keys, values, mask, softcap)


def stacked_tokens(layout: LayerLayout, capacity: int) -> int:
    """Keys that a lane holds of a layer, for prompts of up to `capacity` tokens."""
    return capacity if layout.window is None else min(capacity, layout.window - 1)


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
        shape = (self.num_lanes, layout.num_heads, stacked_tokens(layout, self.capacity), getattr(layout, width))
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
