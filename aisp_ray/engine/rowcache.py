"""The cache of a tile: each row's own suffix, and which prompt's prefix it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer

from aisp_ray.engine.attention import Part, fused, partial
from aisp_ray.engine.prefixes import LayerLayout, Prefix, states_of

LANE = 16  # rows of one prompt that share a product with its keys
BLOCK = 128  # suffix positions of one product
HIDDEN = -1e30  # added to the logit of a key that a row may not see: finite, so that a span with none stays a number


_FUSED_DTYPES = (torch.float32, torch.bfloat16)


class SuffixLayer(CacheLayerMixin):
    """Keys and values of the generated tokens: `key_blocks[j]` is [B, heads, block, key_dim]."""

    is_sliding = False
    is_compileable = True

    def __init__(self, layout: LayerLayout, rows: int, length: int, owner: RowCache):
        super().__init__()
        self.layout, self.owner = layout, owner
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
        self.conv_states = {i: grow(state) for i, state in prefix_layer.conv_states.items()}
        self.recurrent_states = {i: grow(state) for i, state in prefix_layer.recurrent_states.items()}


class RowCache(Cache):
    """A transformers cache whose rows go on from shared prefixes, each at its own position."""

    def __init__(self, probe: Prefix, layouts: Sequence[LayerLayout | None], rows: int, length: int):
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
        self.step: Tensor = torch.zeros(rows, dtype=torch.int64, device=probe.hidden.device)  # suffix position, [B]
        self._lanes: list[Prefix] = []
        self._gather: Tensor | None = None
        self._scatter: Tensor | None = None
        self._memo: dict[Any, Tensor] = {}
        self._moved: dict[Any, Tensor] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values: rows x length tokens, rounded up to whole blocks."""
        tensors = [
            t for layer in self.layers if isinstance(layer, SuffixLayer) for t in (layer.key_blocks, layer.value_blocks)
        ]
        return sum(t.nbytes for t in tensors)

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        """Say which prefix each of the B rows goes on from (None: an idle row). Called when rows change.

        Rows of a prompt form lanes of `LANE` rows, so a product with the prompt's keys always has the same shape.
        """
        groups: dict[int, list[int]] = {}
        by_id = {}
        for row, prefix in enumerate(owners):
            if prefix is not None:
                groups.setdefault(id(prefix), []).append(row)
                by_id[id(prefix)] = prefix
        gather: list[int] = []
        scatter = [0] * self.rows
        self._lanes = []
        for name, members in groups.items():
            for start in range(0, len(members), LANE):
                lane = members[start : start + LANE]
                for place, row in enumerate(lane):
                    scatter[row] = len(gather) + place
                gather += lane + [lane[0]] * (LANE - len(lane))
                self._lanes.append(by_id[name])
        device = self.step.device
        self._gather = torch.tensor(gather, dtype=torch.int64, device=device)
        self._scatter = torch.tensor(scatter, dtype=torch.int64, device=device)
        self._moved.clear()

    def begin_step(self, max_step: int) -> None:
        """Forget the last step's index tensors. max_step: the furthest live row's position."""
        self._memo.clear()
        self.num_blocks = min(max_step, self.length - 1) // self.block + 1

    def write_index(self, heads: int, device: torch.device) -> Tensor:
        """Where each (row, head) writes in the flattened [blocks, B, heads, block] buffers, int64 [B * heads]."""
        name = ("write", heads, device)
        if name not in self._memo:
            at = self.step.to(device)
            row = torch.arange(self.rows, device=device)
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
            at = self.step.to(device)[:, None]
            index = torch.arange(block * self.block, (block + 1) * self.block, device=device)
            hidden = index > at
            if window is not None:
                hidden |= index <= at - window
            self._memo[name] = (hidden * HIDDEN)[:, None, None, :]
        return self._memo[name]

    def prefix_part(self, layer_index: int, query: Tensor, softcap: float | None) -> Part:
        """The prefix's share of the softmax, for all rows. query: scaled, [B, Hkv, g, D]."""
        _, heads, group, dim = query.shape
        gather, scatter = self._on(self._gather, query.device), self._on(self._scatter, query.device)
        lanes = query.index_select(0, gather).view(-1, LANE, heads, group, dim).transpose(1, 2)
        lanes = lanes.reshape(-1, heads, LANE * group, dim)  # [lanes, Hkv, G * g, D]
        parts = []
        for lane, prefix in enumerate(self._lanes):
            keys, values = prefix.keys[layer_index], prefix.values[layer_index]
            mask = self._prefix_mask(lane, layer_index, group, query.device)
            one = lanes[lane : lane + 1]
            if softcap is None and keys.dtype in _FUSED_DTYPES and keys.is_cpu and keys.shape == values.shape:
                parts.append(fused(one, keys, values, mask if mask is None else mask.to(query.dtype)))
            else:
                parts.append(partial(one, keys, values, mask, softcap))
        back = lambda index: (  # noqa: E731
            torch.cat([part[index] for part in parts])
            .view(len(parts), heads, LANE, group, -1)
            .transpose(1, 2)
            .reshape(-1, heads, group, parts[0][index].shape[-1])
            .index_select(0, scatter)
        )
        return back(0).float(), back(1), None if parts[0][2] is None else back(2)

    def _prefix_mask(self, lane: int, layer_index: int, group: int, device: torch.device) -> Tensor | None:
        """Which prefix keys the rows of a lane still see through the layer's window, float32 [1, 1, G * g, L]."""
        prefix, window = self._lanes[lane], self.layouts[layer_index].window
        if window is None or prefix.length + self.length <= window:
            return None
        name = ("prefix", lane, window, group, device)
        if name not in self._memo:
            members = self._on(self._gather, device)[lane * LANE : (lane + 1) * LANE]
            at = self.step.to(device)[members] + prefix.length  # [G]
            start, count = prefix.starts[layer_index], prefix.keys[layer_index].shape[-2]
            index = torch.arange(start, start + count, device=device)
            hidden = index <= (at - window)[:, None]  # [G, L]
            self._memo[name] = (hidden * HIDDEN).repeat_interleave(group, 0)[None, None]
        return self._memo[name]

    def _on(self, tensor: Tensor | None, device: torch.device) -> Tensor:
        assert tensor is not None, "assign() comes before the first step"
        if tensor.device == device:
            return tensor
        name = (id(tensor), device)
        if name not in self._moved:
            self._moved[name] = tensor.to(device)
        return self._moved[name]

    def start_row(self, row: int, prefix: Prefix) -> None:
        """Give a row the prefix's states. Its suffix is empty: old keys lie beyond its position and are masked."""
        for mine, theirs in zip(self.layers, prefix.cache.layers, strict=True):
            if isinstance(mine, StateLayer):
                for state, source in zip(states_of(mine), states_of(theirs), strict=True):
                    state[row].copy_(source[0])

    def copy_row(self, row: int, other: RowCache, source: int) -> None:
        """Take over a row of another tile, bit for bit."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if isinstance(mine, StateLayer):
                for state, from_state in zip(states_of(mine), states_of(theirs), strict=True):
                    state[row].copy_(from_state[source])
            else:
                mine.key_blocks[:, row].copy_(theirs.key_blocks[:, source])
                mine.value_blocks[:, row].copy_(theirs.value_blocks[:, source])
