"""The cache of a tile as transformers sees it: each row's own suffix, behind the prompt that it continues.

How rows attend over the two is injected: `cpu/attention.py` (the engine's kernels), `stacked.py` (PyTorch) or
`cuda/flash.py` (PyTorch's FlashAttention).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from aisp_ray.lm.attention import Call
from aisp_ray.lm.prefixes import LayerLayout, Prefix, states_of
from aisp_ray.lm.shims import Cache, CacheLayerMixin, LinearAttentionLayer
from aisp_ray.lm.snapshots import Snapshot

BLOCK = 128  # suffix positions of one product


class Suffixes:
    """Keys and values of the tokens that the rows of a tile have generated, each row at its own position.

    rows: B. length: suffix positions of a row, rounded up to whole blocks. by_token: one block, in memory [B, length,
    heads, dim], as PyTorch's FlashAttention reads it.
    """

    def __init__(
        self, layouts: Sequence[LayerLayout | None], rows: int, length: int, device: Any, by_token: bool = False
    ):
        self.layouts, self.rows, self.length, self.by_token = list(layouts), rows, length, by_token
        self.block = length if by_token else min(BLOCK, length)
        self.step = torch.zeros(rows, dtype=torch.int64, device=device)  # [B] position that a row is at
        self.width = rows  # rows that a step runs on, from the first on
        self.num_blocks = 1  # blocks that a step reads: as many as the furthest row has reached
        # by layer: [blocks, B, heads, block, key_dim] and value_dim; None for a layer of states
        self.keys = [None if one is None else self._buffer(one, one.key_dim) for one in layouts]
        self.values = [None if one is None else self._buffer(one, one.value_dim) for one in layouts]
        self._memo: dict[Any, Tensor] = {}

    def _buffer(self, layout: LayerLayout, dim: int) -> Tensor:
        if self.by_token:
            shape = (1, self.rows, self.length, layout.num_heads, dim)
            return torch.zeros(shape, dtype=layout.dtype, device=layout.device).transpose(2, 3)
        shape = (-(-self.length // self.block), self.rows, layout.num_heads, self.block, dim)
        return torch.zeros(shape, dtype=layout.dtype, device=layout.device)

    def layer(self, index: int) -> tuple[LayerLayout, Tensor, Tensor]:
        """Layout, keys and values of a layer with attention."""
        layout, keys, values = self.layouts[index], self.keys[index], self.values[index]
        assert layout is not None, "a layer of states has no keys"
        assert keys is not None
        assert values is not None
        return layout, keys, values

    def buffers(self) -> list[Tensor]:
        return [t for t in (*self.keys, *self.values) if t is not None]

    def blocks_for(self, step: int) -> int:
        """Blocks that a row at this position reads."""
        return min(step, self.length - 1) // self.block + 1

    def begin_step(self, num_blocks: int, width: int) -> None:
        self._memo.clear()
        self.num_blocks, self.width = num_blocks, width

    def write(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Put this step's keys [W, heads, 1, key_dim] and values of a layer at each row's own position."""
        for buffer, given in zip(self.layer(index)[1:], (keys, values), strict=True):
            if self.by_token:
                self.tokens(buffer).index_copy_(0, self._token_index(keys.device), given[:, :, 0])
            else:
                at = self._write_index(keys.shape[1], keys.device)
                buffer.view(-1, buffer.shape[-1]).index_copy_(0, at, given.reshape(-1, buffer.shape[-1]))

    @staticmethod
    def tokens(buffer: Tensor) -> Tensor:
        """A buffer that lies by token as [B * length, heads, dim]."""
        return buffer[0].transpose(1, 2).flatten(0, 1)

    def _token_index(self, device: torch.device) -> Tensor:
        """Where each row stepped writes in `tokens`, int64 [W]."""
        if device not in self._memo:
            at = self.step[: self.width].to(device)
            self._memo[device] = torch.arange(self.width, device=device) * self.length + at
        return self._memo[device]

    def _write_index(self, heads: int, device: torch.device) -> Tensor:
        """Where each (row, head) stepped writes in the flattened [blocks, B, heads, block] buffers, int64."""
        if (heads, device) not in self._memo:
            at = self.step[: self.width].to(device)
            row = torch.arange(self.width, device=device)
            block = at // self.block
            base = ((block * self.rows + row) * heads)[:, None] + torch.arange(heads, device=device)  # [W, heads]
            self._memo[heads, device] = (base * self.block + (at - block * self.block)[:, None]).flatten()
        return self._memo[heads, device]


class RowAttention(Protocol):
    """How the rows of a tile attend: one softmax over the prompt that a row continues and its own suffix."""

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        """Say which prompt each of the rows continues (None: an idle row). Called when rows change."""

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        """How many more rows of this prompt there is room for."""

    def signature(self) -> tuple[Any, ...]:
        """What a recorded step depends on besides the values of the tensors."""

    def begin_step(self) -> None:
        """Positions have moved on."""

    def attend(self, call: Call) -> Tensor:
        """Query [W, H, 1, key_dim] -> [W, 1, H, value_dim]. This step's keys and values are in the suffixes already."""

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values that are held apart from the prefix store and the suffixes."""


class SuffixLayer(CacheLayerMixin):
    """One layer of `Suffixes`."""

    is_sliding = False
    is_compileable = True

    def __init__(self, suffixes: Suffixes, index: int):
        super().__init__()
        self.suffixes, self.index = suffixes, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.suffixes.write(self.index, key_states, value_states)
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
    """A transformers cache whose rows continue shared prompts, each at its own position."""

    def __init__(self, probe: Prefix, suffixes: Suffixes, attention: RowAttention):
        self.suffixes, self.attention = suffixes, attention
        self._states = {
            i: StateLayer(probe.cache.layers[i], suffixes.rows)
            for i, layout in enumerate(suffixes.layouts)
            if layout is None
        }
        indices = range(len(suffixes.layouts))
        super().__init__(layers=[self._states.get(i) or SuffixLayer(suffixes, i) for i in indices])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values: rows x length tokens, rounded up to whole blocks."""
        return sum(t.nbytes for t in self.suffixes.buffers()) + self.attention.num_bytes

    def begin_step(self, num_blocks: int, width: int) -> None:
        """num_blocks: suffix blocks to read. width: rows stepped."""
        if width != self.suffixes.width:
            for layer in self._states.values():
                layer.take(width)
        self.suffixes.begin_step(num_blocks, width)
        self.attention.begin_step()

    def states(self) -> list[Tensor]:
        """Convolution and recurrent states of all layers."""
        return [state for layer in self._states.values() for state in layer.states()]

    def start_row(self, row: int, prefix: Prefix, snapshot: Snapshot | None = None, count: int = 0) -> None:
        """Give a row the prefix's states, or a snapshot's suffix over `count` tokens. Older keys of the slot lie beyond
        the row's position and are masked."""
        suffixes = self.suffixes
        suffixes.step[row].fill_(count)
        states = [s for i in self._states for s in states_of(prefix.cache.layers[i])]
        sources = [state[0] for state in states] if snapshot is None else snapshot.states
        for mine, source in zip(self.states(), sources, strict=True):
            mine[row].copy_(source)
        if snapshot is None:
            return
        for buffers, given in ((suffixes.keys, snapshot.keys), (suffixes.values, snapshot.values)):
            for buffer, kept in zip(buffers, given, strict=True):
                if buffer is None or kept is None:
                    continue
                for block in range(-(-count // suffixes.block)):
                    start, end = block * suffixes.block, min((block + 1) * suffixes.block, count)
                    buffer[block, row, :, : end - start].copy_(kept[:, start:end])

    def save_row(self, row: int, tokens: Sequence[int]) -> Snapshot:
        """A copy of the row's suffix over all tokens but the last, which no forward has read."""
        kept = len(tokens) - 1
        over = lambda t: None if t is None else t[:, row].transpose(0, 1).flatten(1, 2)[:, :kept].clone()  # noqa: E731
        keys, values = (tuple(over(t) for t in held) for held in (self.suffixes.keys, self.suffixes.values))
        return Snapshot(tuple(tokens), kept, keys, values, tuple(state[row].clone() for state in self.states()))

    def copy_rows(self, rows: Tensor, other: RowCache, sources: Tensor) -> None:
        """Take over rows of another tile, or of this one, bit for bit. rows, sources: int64."""
        self.suffixes.step[rows] = other.suffixes.step[sources]
        for state, from_state in zip(self.states(), other.states(), strict=True):
            state[rows.to(state.device)] = from_state[sources.to(state.device)]
        for mine, theirs in zip(self.suffixes.buffers(), other.suffixes.buffers(), strict=True):
            mine[:, rows.to(mine.device)] = theirs[:, sources.to(mine.device)]
