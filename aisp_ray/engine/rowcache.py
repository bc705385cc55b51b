"""The cache of a tile: each row's own suffix, and which prompt's prefix it goes on from."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aisp_ray.engine.cpu.direct import DirectPrefixes
from aisp_ray.engine.cpu.kernels import Kernels
from aisp_ray.engine.prefixparts import LoopedPrefixes, PrefixPart, StackedPrefixes, window_mask
from aisp_ray.lm.attention import HIDDEN, Call, merge, partial, whole_vectors
from aisp_ray.lm.prefixes import LayerLayout, Prefix, states_of
from aisp_ray.lm.shims import Cache, CacheLayerMixin, LinearAttentionLayer
from aisp_ray.lm.snapshots import Snapshot

BLOCK = 128  # suffix positions of one product


class SuffixLayer(CacheLayerMixin):
    """Keys and values of the generated tokens: `key_blocks[j]` is [B, heads, block, key_dim]."""

    is_sliding = False
    is_compileable = True

    def __init__(self, layout: LayerLayout, rows: int, length: int, owner: RowCache):
        super().__init__()
        # not a strong reference: a cycle would keep the buffers of a tile that is given up
        self.layout, self.owner = layout, weakref.proxy(owner)
        shape = (owner.max_blocks, rows, layout.num_heads, owner.block)
        self.key_blocks = torch.zeros((*shape, layout.key_dim), dtype=layout.dtype, device=layout.device)
        self.value_blocks = torch.zeros((*shape, layout.value_dim), dtype=layout.dtype, device=layout.device)
        self._flat_keys = self.key_blocks.view(-1, layout.key_dim)
        self._flat_values = self.value_blocks.view(-1, layout.value_dim)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write this step's keys [B, heads, 1, key_dim] and values at each row's own position."""
        at = self.owner.write_index(self.layout.num_heads, key_states.device)
        self._flat_keys.index_copy_(0, at, key_states.reshape(-1, self.layout.key_dim))
        self._flat_values.index_copy_(0, at, value_states.reshape(-1, self.layout.value_dim))
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class StateLayer(LinearAttentionLayer):
    """Convolution and recurrent states of the rows, filled from a prefix when a row starts."""

    def __init__(self, prefix_layer: LinearAttentionLayer, rows: int):
        super().__init__(number_of_states=prefix_layer.number_of_states)
        self.device, self.dtype = prefix_layer.device, prefix_layer.dtype
        self.conv_kernel_size = dict(prefix_layer.conv_kernel_size)
        self.is_conv_states_initialized = dict(prefix_layer.is_conv_states_initialized)
        self.is_recurrent_states_initialized = dict(prefix_layer.is_recurrent_states_initialized)
        self.has_previous_state = dict(prefix_layer.has_previous_state)
        grow = lambda state: None if state is None else state.new_zeros((rows, *state.shape[1:]))  # noqa: E731
        self._conv = {i: grow(state) for i, state in prefix_layer.conv_states.items()}
        self._recurrent = {i: grow(state) for i, state in prefix_layer.recurrent_states.items()}
        self.take(rows)

    def take(self, width: int) -> None:
        """Let the model see the states of the first `width` rows; it writes them in place."""
        first = lambda state: None if state is None else state[:width]  # noqa: E731
        self.conv_states = {i: first(state) for i, state in self._conv.items()}
        self.recurrent_states = {i: first(state) for i, state in self._recurrent.items()}

    def states(self) -> list[Tensor]:
        """The states of all rows, in the order of `states_of`."""
        return [state for state in (*self._conv.values(), *self._recurrent.values()) if state is not None]


class RowCache(Cache):
    """A transformers cache whose rows go on from shared prefixes, each at its own position.

    length: suffix positions. capacity: None loops over prompts of any length, else all are stacked up to this one.
    kernels: do the attention, of prompts of any length.
    """

    def __init__(
        self,
        probe: Prefix,
        layouts: Sequence[LayerLayout | None],
        rows: int,
        length: int,
        capacity: int | None = None,
        kernels: Kernels | None = None,
    ):
        self.rows, self.length = rows, length
        self.block = min(BLOCK, length)
        self.max_blocks = -(-length // self.block)
        layers = [
            StateLayer(probe.cache.layers[i], rows) if layout is None else SuffixLayer(layout, rows, length, self)
            for i, layout in enumerate(layouts)
        ]
        super().__init__(layers=layers)
        self.layouts = list(layouts)
        self.num_blocks = 1
        self.reaches: tuple[int, ...] = ()  # numbers of a block's keys that may be read alone, ascending
        self.reach: int | None = None  # keys of the last block that the step reads; None: all
        self.width = rows  # rows that the step runs on, from the first on
        self.step: Tensor = torch.zeros(rows, dtype=torch.int64, device=probe.hidden.device)  # suffix position, [B]
        self.direct = None if kernels is None else DirectPrefixes(rows, self.step, length, layouts, kernels)
        self.prefixes: PrefixPart = self.direct or (
            LoopedPrefixes(rows, self.step, length, layouts)
            if capacity is None
            else StackedPrefixes(rows, self.step, length, layouts, capacity)
        )
        self._memo: dict[Any, Tensor] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values: rows x length tokens, rounded up to whole blocks."""
        return sum(t.nbytes for t in self.buffers()) + self.prefixes.num_bytes

    def buffers(self) -> list[Tensor]:
        """Keys and values of all layers."""
        suffixes = [layer for layer in self.layers if isinstance(layer, SuffixLayer)]
        return [t for layer in suffixes for t in (layer.key_blocks, layer.value_blocks)]

    def blocks_for(self, step: int) -> int:
        """Suffix blocks that a row at this position reads."""
        return min(step, self.length - 1) // self.block + 1

    def reach_for(self, step: int) -> int | None:
        """How many keys of its last block a row at this position reads at least; None: all."""
        return next((reach for reach in self.reaches if reach > step % self.block), None)

    def begin_step(self, num_blocks: int, width: int, reach: int | None = None) -> None:
        """Forget the last step's index tensors. num_blocks: as many as the furthest row reads, and of the last one
        `reach` keys. width: rows stepped."""
        self._memo.clear()
        self.prefixes.begin_step()
        self.num_blocks, self.reach = num_blocks, reach
        if width != self.width:
            self.width = width
            for layer in self.layers:
                if isinstance(layer, StateLayer):
                    layer.take(width)

    def attend(self, call: Call) -> Tensor:
        """The attention of one decode step's rows: query [B, H, 1, D] -> [B, 1, H, value_dim].

        Every product has a shape that depends on the tile, the lane width and the row's own prompt only, never on who
        else is in the batch. Blocks of the suffix that no row has reached are skipped; a row not there yet would weigh
        them with an exact zero, so skipping changes no bit. Of the last block only what rows have reached is read,
        where a trial at load (`widths.py`) showed the same bits for that.
        """
        layer, query = self.layers[call.layer], call.query
        layout, softcap = layer.layout, call.options.get("softcap")
        if self.direct is not None:
            return self.direct.attend(call.layer, layer, query, call.scale, call.options)
        rows, heads, _, dim = query.shape
        grouped = (query * call.scale).view(rows, layout.num_heads, heads // layout.num_heads, dim)  # [B, Hkv, g, D]
        found = self.prefixes.part(call.layer, grouped, softcap)
        for block in range(self.num_blocks):
            mask = self.suffix_mask(block, layout.window, query.device)  # [B, 1, 1, block]
            keys, values = layer.key_blocks[block][:rows], layer.value_blocks[block][:rows]
            reach = self.reach if block == self.num_blocks - 1 else None
            found = merge(found, partial(grouped, keys, values, mask, softcap, reach))
        out, mass = found
        sinks = call.options.get("s_aux")
        if sinks is not None:  # one more logit per head, which takes mass and gives nothing
            out = out * whole_vectors(torch.sigmoid, mass - sinks.float().view(1, layout.num_heads, -1, 1))
        return out.to(query.dtype).reshape(rows, 1, heads, -1)

    def states(self) -> list[Tensor]:
        """Convolution and recurrent states of all layers."""
        return [state for layer in self.layers if isinstance(layer, StateLayer) for state in layer.states()]

    def write_index(self, heads: int, device: torch.device) -> Tensor:
        """Where each (row, head) stepped writes in the flattened [blocks, B, heads, block] buffers, int64."""
        name = ("write", heads, device)
        if name not in self._memo:
            at = self.step[: self.width].to(device)
            row = torch.arange(self.width, device=device)
            block = at // self.block
            base = ((block * self.rows + row) * heads)[:, None] + torch.arange(heads, device=device)  # [B, heads]
            self._memo[name] = (base * self.block + (at - block * self.block)[:, None]).flatten()
        return self._memo[name]

    def suffix_mask(self, block: int, window: int | None, device: torch.device) -> Tensor:
        """0 where the row sees a suffix key, else `HIDDEN`. Float32 [B, 1, 1, block]."""
        if window is not None and window > self.length:
            window = None
        name = ("suffix", block, window, device)
        if name not in self._memo:
            at = self.step[: self.width].to(device)[:, None]
            index = torch.arange(block * self.block, (block + 1) * self.block, device=device)
            hidden = index > at
            mask = hidden * HIDDEN
            if window is not None and (before := window_mask(at, index, window)) is not None:
                mask = mask + before
            self._memo[name] = mask[:, None, None, :]
        return self._memo[name]

    def start_row(self, row: int, prefix: Prefix, snapshot: Snapshot | None = None, count: int = 0) -> None:
        """Give a row the prefix's states, or a snapshot's suffix over `count` tokens. Older keys of the slot lie beyond
        the row's position and are masked."""
        self.step[row] = count
        states = [
            s for layer in prefix.cache.layers if isinstance(layer, LinearAttentionLayer) for s in states_of(layer)
        ]
        sources = [state[0] for state in states] if snapshot is None else snapshot.states
        for mine, source in zip(self.states(), sources, strict=True):
            mine[row].copy_(source)
        if snapshot is not None:
            for layer, keys, values in zip(self.layers, snapshot.keys, snapshot.values, strict=True):
                for block in range(0 if keys is None else -(-count // self.block)):
                    start, end = block * self.block, min((block + 1) * self.block, count)
                    layer.key_blocks[block, row, :, : end - start].copy_(keys[:, start:end])
                    layer.value_blocks[block, row, :, : end - start].copy_(values[:, start:end])

    def save_row(self, row: int, tokens: Sequence[int]) -> Snapshot:
        """A copy of the row's suffix over all tokens but the last, which no forward has read."""
        kept = len(tokens) - 1
        over = lambda blocks: blocks[:, row].transpose(0, 1).flatten(1, 2)[:, :kept].clone()  # noqa: E731
        suffixes = [layer if isinstance(layer, SuffixLayer) else None for layer in self.layers]
        keys = tuple(None if layer is None else over(layer.key_blocks) for layer in suffixes)
        values = tuple(None if layer is None else over(layer.value_blocks) for layer in suffixes)
        return Snapshot(tuple(tokens), kept, keys, values, tuple(state[row].clone() for state in self.states()))

    def copy_row(self, row: int, other: RowCache, source: int) -> None:
        """Take over a row of another tile, bit for bit."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if isinstance(mine, StateLayer):
                for state, from_state in zip(mine.states(), theirs.states(), strict=True):
                    state[row].copy_(from_state[source])
            else:
                mine.key_blocks[:, row].copy_(theirs.key_blocks[:, source])
                mine.value_blocks[:, row].copy_(theirs.value_blocks[:, source])
