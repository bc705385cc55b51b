"""Attention of a tile's rows by PyTorch's operations: CUDA's way, and a CPU's without the engine's kernels.

The prompts of a tile lie side by side in buffers of fixed shape, and all lanes share one batched product; a lane is up
to `LANE` rows of one prompt. A row's softmax over prompt and suffix is computed in spans that are merged by their
largest logit and mass. Keys that a row may not see are weighed with an exact zero, and a span of such keys leaves the
others as they are, bit for bit; so a step reads as many spans as its longest prompt has. Every product's shape depends
on the tile alone, or, where that is allowed, on the lanes in use.

Shapes: B slots, W rows stepped, G = LANE, H query heads in groups of g = H / Hkv per key-value head, D head width, L
keys of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from aisp_ray.engine.rowcache import Suffixes
from aisp_ray.lm.attention import HIDDEN, Call, Part, merge, partial, scaled, whole_vectors
from aisp_ray.lm.prefixes import LayerLayout, Prefix

LANE = 16  # rows of one prompt that share a product with its keys
SPAN = 256  # prompt keys of one product
FIRST = 128  # of the first two products, where each further one has twice as many keys as the one before


def lanes_of(owners: Sequence[Prefix | None], most: int) -> list[tuple[Prefix, list[int]]]:
    """The rows of each prompt, in lanes of at most `most`."""
    groups: dict[int, tuple[Prefix, list[int]]] = {}
    for row, prefix in enumerate(owners):
        if prefix is not None:
            groups.setdefault(id(prefix), (prefix, []))[1].append(row)
    return [
        (prefix, members[start : start + most])
        for prefix, members in groups.values()
        for start in range(0, len(members), most)
    ]


def stacked_tokens(layout: LayerLayout, longest: int) -> int:
    """Keys that a lane holds of a layer, for prompts of up to `longest` tokens."""
    return longest if layout.window is None else min(longest, layout.window - 1)


def round_up(count: int) -> int:
    """Keys of the doubling spans that hold this many."""
    return FIRST << max(-(-count // FIRST) - 1, 0).bit_length()


class StackedAttention:
    """`RowAttention` over lanes in buffers of [lanes, Hkv, L, D], one for each span that a prompt in flight reaches.

    doubling: spans of 128, 128, 256, 512 ... keys: few products for long prompts, little waste for short ones; else of
    `SPAN` keys. narrow: a step computes no more lanes than hold its rows, rounded up to a power of two, which may
    change a row's last bits; else all.
    """

    def __init__(self, suffixes: Suffixes, doubling: bool = False, narrow: bool = False):
        self.suffixes, self.doubling, self.narrow = suffixes, doubling, narrow
        rows, device = suffixes.rows, suffixes.step.device
        self.num_lanes = max(2 * (-(-rows // LANE)), 2)
        self._lanes = self.num_lanes  # that a step computes
        self._held: list[tuple[int, ...] | None] = [None] * self.num_lanes
        self._gather = torch.zeros(self.num_lanes * LANE, dtype=torch.int64, device=device)
        self._scatter = torch.zeros(rows, dtype=torch.int64, device=device)
        self._lengths = torch.ones(self.num_lanes, dtype=torch.int64, device=device)
        self._starts = torch.zeros(len(suffixes.layouts), self.num_lanes, dtype=torch.int64, device=device)
        self._spans: list[list[tuple[Tensor, Tensor]]] = [[] for _ in suffixes.layouts]  # by layer: keys, values
        self._read = [1] * len(suffixes.layouts)  # by layer: spans that the tile's prompts reach
        self._memo: dict[Any, Tensor] = {}
        for index, layout in enumerate(suffixes.layouts):
            if layout is not None:
                self._grow(index, layout)

    def _grow(self, index: int, layout: LayerLayout) -> None:
        shape = (self.num_lanes, layout.num_heads, self._span(layout, len(self._spans[index]))[1])
        keys, values = (
            torch.zeros((*shape, dim), dtype=layout.dtype, device=layout.device)
            for dim in (layout.key_dim, layout.value_dim)
        )
        self._spans[index].append((keys, values))

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for spans in self._spans for span in spans for t in span)

    def signature(self) -> tuple[Any, ...]:
        return (self._lanes, *self._read)

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        lanes = lanes_of(owners, LANE)
        spare = sum(LANE - len(members) for owner, members in lanes if owner is prefix)
        return spare + LANE * (self.num_lanes - len(lanes))

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        """Keep prompts in the lane that holds them already; copy the others in."""
        waiting = lanes_of(owners, LANE)
        if self.narrow:
            self._lanes = min(1 << max(len(waiting) - 1, 0).bit_length(), self.num_lanes)
        placed: list[tuple[Prefix, list[int]] | None] = [None] * self._lanes
        for lane, held in enumerate(self._held[: self._lanes]):
            found = next((one for one in waiting if one[0].ids == held), None)
            if found is not None:
                placed[lane] = found
                waiting.remove(found)
        for one in waiting:
            lane = placed.index(None)
            placed[lane] = one
            self._copy_in(lane, one[0])
        gather, scatter = [0] * (self.num_lanes * LANE), [0] * self.suffixes.rows
        for lane, lane_rows in enumerate(placed):
            for place, row in enumerate(lane_rows[1] if lane_rows is not None else ()):
                gather[lane * LANE + place] = row
                scatter[row] = lane * LANE + place
        self._gather.copy_(torch.tensor(gather))
        self._scatter.copy_(torch.tensor(scatter))
        prompts = [one[0] for one in placed if one is not None]
        for index, spans in enumerate(self._spans):
            counts = [keys.shape[-2] for prefix in prompts if (keys := prefix.keys[index]) is not None]
            self._read[index] = self._spans_for(index, max(counts, default=1)) if spans else 0

    def _span(self, layout: LayerLayout, number: int) -> tuple[int, int]:
        """Where among the kept keys of a prompt this span begins, and how many it holds."""
        if self.doubling and number:
            return FIRST << (number - 1), FIRST << (number - 1)
        size = stacked_tokens(layout, FIRST if self.doubling else SPAN)
        return number * size, size

    def _spans_for(self, index: int, count: int) -> int:
        """Spans that this many keys reach."""
        if self.doubling:
            return (round_up(count) // FIRST).bit_length()
        return max(-(-count // self._spans[index][0][0].shape[2]), 1)

    def _copy_in(self, lane: int, prefix: Prefix) -> None:
        self._held[lane] = None  # until all of it is there: memory may run out
        self._lengths[lane].fill_(prefix.length)
        for index, layout in enumerate(self.suffixes.layouts):
            keys, values, spans = prefix.keys[index], prefix.values[index], self._spans[index]
            if layout is None or keys is None or values is None:
                continue
            self._starts[index, lane].fill_(prefix.starts[index])
            sizes = self._sizes(index, layout, keys.shape[2])
            for number, (some, their) in enumerate(
                zip(keys[0].split(sizes, 1), values[0].split(sizes, 1), strict=True)
            ):
                if number == len(spans):
                    self._grow(index, layout)
                spans[number][0][lane, :, : some.shape[1]].copy_(some)
                spans[number][1][lane, :, : some.shape[1]].copy_(their)
        self._held[lane] = prefix.ids

    def _sizes(self, index: int, layout: LayerLayout, count: int) -> list[int]:
        """Of `count` keys, those in each span."""
        sizes = [self._span(layout, number)[1] for number in range(self._spans_for(index, count))]
        sizes[-1] = count - sum(sizes[:-1])
        return sizes

    def begin_step(self) -> None:
        self._memo.clear()

    def attend(self, call: Call) -> Tensor:
        suffixes, softcap = self.suffixes, call.options.get("softcap")
        layout, keys, values = suffixes.layer(call.layer)
        query, scale = scaled(call.query, call.scale)
        rows, heads, _, dim = query.shape
        grouped = query.view(rows, layout.num_heads, heads // layout.num_heads, dim)  # [W, Hkv, g, D]
        found = self._over_prompts(call.layer, grouped, softcap, scale)
        for block in range(suffixes.num_blocks):
            mask = self._suffix_mask(block, layout.window, query.device)  # [W, 1, 1, L]
            own = partial(grouped, keys[block, :rows], values[block, :rows], mask, softcap, scale)
            found = merge(found, own)
        out, mass = found
        sinks = call.options.get("s_aux")
        if sinks is not None:  # one more logit a head, which takes mass and gives nothing
            out = out * whole_vectors(torch.sigmoid, mass - sinks.float().view(1, layout.num_heads, -1, 1))
        return out.to(query.dtype).reshape(rows, 1, heads, -1)

    def _over_prompts(self, index: int, query: Tensor, softcap: float | None, scale: float) -> Part:
        """The prompts' share for all rows, [W, Hkv, g, value_dim] and [W, Hkv, g, 1]."""
        rows, heads, group, dim = query.shape
        gather = on_device(self._gather, query.device, self._memo)[: self._lanes * LANE]
        lanes = query.index_select(0, gather).view(-1, LANE, heads, group, dim)
        lanes = lanes.transpose(1, 2).reshape(-1, heads, LANE * group, dim)  # [lanes, Hkv, G * g, D]
        parts = []
        for number, (keys, values) in enumerate(self._spans[index][: self._read[index]]):
            mask = self._prompt_mask(index, number, group, query.device)
            parts.append(partial(lanes, keys[: self._lanes], values[: self._lanes], mask, softcap, scale))
        scatter = on_device(self._scatter, query.device, self._memo)[:rows]
        out, mass = (
            t.view(-1, heads, LANE, group, t.shape[-1]).transpose(1, 2).reshape(-1, heads, group, t.shape[-1])
            for t in reduce(merge, parts)
        )
        return out.index_select(0, scatter), mass.index_select(0, scatter)

    def _prompt_mask(self, index: int, number: int, group: int, device: torch.device) -> Tensor:
        """`HIDDEN` behind a lane's prompt and before the window, float32 [lanes, 1, G * g or 1, L]."""
        layout = self.suffixes.layer(index)[0]
        window = layout.window
        name = ("prompt", window, number, group, device)
        if name not in self._memo:
            lengths, starts = on_device(self._lengths, device, self._memo), on_device(self._starts, device, self._memo)
            length, start = lengths[: self._lanes], starts[index, : self._lanes]
            size = self._spans[index][number][0].shape[2]
            begin = self._span(layout, number)[0] if self.doubling else number * size
            at = start[:, None] + begin + torch.arange(size, device=device)  # [lanes, L] positions
            mask = ((at >= length[:, None]) * HIDDEN)[:, None, None, :]
            if window is not None:
                gather = on_device(self._gather, device, self._memo)[: self._lanes * LANE]
                row = on_device(self.suffixes.step, device, self._memo)[gather].view(-1, LANE)
                before = at[:, None, :] <= (row + length[:, None])[:, :, None] - window  # [lanes, G, L]
                mask = mask + (before * HIDDEN).repeat_interleave(group, 1)[:, None]
            self._memo[name] = mask
        return self._memo[name]

    def _suffix_mask(self, block: int, window: int | None, device: torch.device) -> Tensor:
        """0 where the row sees a suffix key, else `HIDDEN`. Float32 [W, 1, 1, block]."""
        name = ("suffix", block, window, device)
        if name not in self._memo:
            at = on_device(self.suffixes.step, device, self._memo)[: self.suffixes.width, None]
            size = self.suffixes.block
            index = torch.arange(block * size, (block + 1) * size, device=device)
            hidden = index > at
            if window is not None:
                hidden |= index <= at - window
            self._memo[name] = (hidden * HIDDEN)[:, None, None, :]
        return self._memo[name]


def on_device(tensor: Tensor, device: torch.device, memo: dict[Any, Tensor]) -> Tensor:
    """An index tensor on a layer's device, copied there once a step: `memo` is emptied when positions move on."""
    if tensor.device == device:
        return tensor
    name = (id(tensor), device)
    if name not in memo:
        memo[name] = tensor.to(device)
    return memo[name]
