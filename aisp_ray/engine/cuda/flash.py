"""Attention of a tile's rows by PyTorch's own FlashAttention over ragged lengths, which returns log-sum-exps.

A layer is two calls and a merge: all rows of a prompt as the queries of one sequence over its keys, then each row as a
sequence over its own suffix. Prompts lie end to end in one pool a layer and a call is given offsets and lengths, so
prompts may be of any length, nothing is padded, and one recorded step serves all of them. Scores are float32 inside.

Left to `stacked.py`: soft-caps, and windows that cut a prompt or a suffix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aisp_ray.engine.rowcache import Suffixes
from aisp_ray.engine.stacked import lanes_of, on_device
from aisp_ray.lm.attention import Call, merge, whole_vectors
from aisp_ray.lm.prefixes import LayerLayout, Prefix
from aisp_ray.lm.shims import flash_attention
from aisp_ray.lm.support import UnsupportedModelError

POOL = 4096  # prompt tokens that a pool begins with
WIDEST = 256  # head width that FlashAttention computes
DTYPES = (torch.bfloat16, torch.float16)


def problem(layouts: Sequence[LayerLayout | None], longest: int | None, length: int) -> str | None:
    """Why these layers cannot be computed so, or None. longest: tokens of a prompt; length: of a response."""
    for index, layout in enumerate(layouts):
        if layout is None:
            continue
        if layout.key_dim != layout.value_dim or layout.key_dim > WIDEST:
            return f"layer {index} has keys of width {layout.key_dim} and values of width {layout.value_dim}"
        if layout.device.type == "cuda" and layout.dtype not in DTYPES:
            return f"layer {index} is {layout.dtype}, and FlashAttention needs bfloat16 or float16"
        if layout.window is not None and (longest is None or longest + length > layout.window):
            return (
                f"layer {index} has a window of {layout.window} tokens, shorter than prompt and response may be; "
                f"policy.max_prompt_tokens={max(layout.window - length, 0)} would fit"
            )
    return None


class FlashAttention:
    """`RowAttention` by `shims.flash_attention`."""

    def __init__(self, suffixes: Suffixes):
        assert suffixes.by_token, "the suffixes do not lie as FlashAttention reads them"
        self.suffixes = suffixes
        self._pools: list[tuple[Tensor, Tensor] | None] = []  # by layer: keys and values [pool, Hkv, D]
        self._places: dict[tuple[int, ...], int] = {}  # by prompt: its first token in the pools
        self._size, self._used = 0, 0
        rows, self._device = suffixes.rows, suffixes.step.device
        index = lambda count, dtype: torch.zeros(count, dtype=dtype, device=self._device)  # noqa: E731
        self._order, self._back = index(rows, torch.int64), index(rows, torch.int64)  # rows by prompt, and back
        self._queries = index(rows + 1, torch.int32)  # where each prompt's rows begin among them
        self._keys, self._lengths = index(rows + 1, torch.int32), index(rows, torch.int32)  # its keys in the pools
        self._memo: dict[Any, Tensor] = {}
        self._resize(POOL)

    def _resize(self, size: int) -> None:
        self._pools = []  # what they hold goes first
        shape = lambda layout, dim: (size, layout.num_heads, dim)  # noqa: E731
        for layout in self.suffixes.layouts:
            if layout is None:
                self._pools.append(None)
                continue
            keys, values = (
                torch.zeros(shape(layout, dim), dtype=layout.dtype, device=layout.device)
                for dim in (layout.key_dim, layout.value_dim)
            )
            self._pools.append((keys, values))
        self._places.clear()
        self._size, self._used = size, 0

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for pool in self._pools if pool is not None for t in pool)

    def signature(self) -> tuple[Any, ...]:
        return (self._size,)  # another size lies elsewhere

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        return self.suffixes.rows

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        groups = lanes_of(owners, most=len(owners))
        self._hold([prefix for prefix, _ in groups])
        order = [row for _, members in groups for row in members]
        idle = [row for row, prefix in enumerate(owners) if prefix is None]
        width = len(owners)
        order += idle  # they belong to no sequence
        back = [0] * width
        for place, row in enumerate(order):
            back[row] = place
        ends = [0]
        for _, members in groups:
            ends.append(ends[-1] + len(members))
        ends += [ends[-1]] * (width + 1 - len(ends))
        starts = [self._places[prefix.ids] for prefix, _ in groups]
        lengths = [prefix.length for prefix, _ in groups]
        spare = width - len(groups)
        held = ((self._keys, starts + [0] * (spare + 1)), (self._lengths, lengths + [0] * spare))
        for tensor, values in ((self._order, order), (self._back, back), (self._queries, ends), *held):
            tensor[: len(values)].copy_(torch.tensor(values, dtype=tensor.dtype))

    def _hold(self, prefixes: Sequence[Prefix]) -> None:
        """Have these prompts in the pools; what else is there goes when room is needed."""
        if sum(p.length for p in prefixes if p.ids not in self._places) > self._size - self._used:
            needed, size = sum(prefix.length for prefix in prefixes), self._size
            while size < needed:
                size *= 2
            if size > self._size:
                self._resize(size)
            self._places.clear()
            self._used = 0
        for prefix in prefixes:
            if prefix.ids not in self._places:
                self._copy_in(prefix)

    def _copy_in(self, prefix: Prefix) -> None:
        start, stop = self._used, self._used + prefix.length
        for pool, *given in zip(self._pools, prefix.keys, prefix.values, strict=True):
            for mine, theirs in zip(pool or (), given, strict=False):
                assert theirs is not None
                mine[start:stop].copy_(theirs[0].transpose(0, 1))
        self._places[prefix.ids] = start
        self._used = stop

    def begin_step(self) -> None:
        self._memo.clear()

    def attend(self, call: Call) -> Tensor:
        if call.options.get("softcap") is not None:
            raise UnsupportedModelError("its attention has a soft-cap, which FlashAttention does not return")
        _, keys, values = self.suffixes.layer(call.layer)
        query = call.query[:, :, 0]  # [W, H, D]
        pool, device = self._pools[call.layer], query.device
        assert pool is not None
        rows, heads, _ = query.shape
        on = lambda tensor, count: on_device(tensor, device, self._memo)[:count]  # noqa: E731
        asked = query.index_select(0, on(self._order, rows))
        places = on(self._queries, rows + 1), on(self._keys, rows + 1), on(self._lengths, rows)
        out, mass = flash_attention(asked, *pool, *places, (rows, self._size), call.scale)
        back = on(self._back, rows)
        far = out.index_select(0, back).float(), mass.t().index_select(0, back)[..., None]  # [W, H, D], [W, H, 1]
        own, longest = self._own(rows, device), (1, self.suffixes.length)
        tokens = self.suffixes.tokens(keys), self.suffixes.tokens(values)
        near = flash_attention(query, tokens[0], tokens[1], own[0], own[1], own[2], longest, call.scale)
        found, mass = merge(far, (near[0].float(), near[1].t()[..., None]))
        sinks = call.options.get("s_aux")
        if sinks is not None:  # one more logit a head, which takes mass and gives nothing
            found = found * whole_vectors(torch.sigmoid, (mass - sinks.float().view(1, -1, 1)).contiguous())
        return found.to(query.dtype).view(rows, 1, heads, -1)

    def _own(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Where each row's query, and the keys of its suffix, begin, int32 [W + 1]; how many keys it sees, [W]."""
        if ("own", device) not in self._memo:
            at = torch.arange(rows + 1, dtype=torch.int32, device=device)
            self._memo["own", device] = at
            self._memo["keys", device] = at * self.suffixes.length
            self._memo["seen", device] = on_device(self.suffixes.step, device, self._memo)[:rows].int() + 1
        return self._memo["own", device], self._memo["keys", device], self._memo["seen", device]
