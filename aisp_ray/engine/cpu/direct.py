"""Attention of a tile's rows by the engine's own kernels: prompts read once for all their rows, suffixes in place.

A row's numbers depend on the row and its prompt alone, whatever the tile's shape: no lanes of a fixed width, no keys
read beyond a row's position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aisp_ray.engine.cpu.kernels import Kernels, Layer
from aisp_ray.engine.prefixparts import Lanes
from aisp_ray.lm.prefixes import LayerLayout, Prefix

if TYPE_CHECKING:
    from aisp_ray.engine.rowcache import SuffixLayer


class DirectPrefixes(Lanes):
    """A lane is all rows of a prompt. `attend` does the whole attention of a layer."""

    num_bytes = 0

    def __init__(self, rows: int, step: Tensor, length: int, layouts: Sequence[LayerLayout | None], kernels: Kernels):
        super().__init__(rows, step, length, layouts)
        self.kernels = kernels
        self._groups: list[tuple[Prefix, list[int]]] = []
        self._members = torch.zeros(0, dtype=torch.int64, device="cpu")
        self._tables: dict[int, Tensor] = {}  # by layer: the lanes as kernels.c reads them
        self._idle = False  # whether some of the rows stepped go on from no prompt
        self._layers: dict[int, Layer] = {}

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        self._groups = self.group(owners, most=self.rows)
        members = [row for _, rows in self._groups for row in rows]
        self._members = torch.tensor(members, dtype=torch.int64, device="cpu")
        self._idle = len(members) < len(owners)
        self._tables.clear()

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        return self.rows

    def attend(self, index: int, suffix: SuffixLayer, query: Tensor, scale: float, options: dict[str, Any]) -> Tensor:
        """Attention of layer `index`: query [B, H, 1, D] -> [B, 1, H, value_dim]."""
        count, heads = query.shape[:2]
        query, sinks = query.contiguous(), options.get("s_aux")
        sinks = None if sinks is None else sinks.detach().float().contiguous()
        if sinks is not None and sinks.numel() != heads:
            raise ValueError(f"layer {index} has {sinks.numel()} sinks for {heads} heads")
        layer = self._layer(index, suffix, heads)
        layer.scale, layer.softcap = scale, options.get("softcap") or 0.0
        layer.sinks = None if sinks is None else sinks.data_ptr()
        make = query.new_zeros if self._idle else query.new_empty
        out = make(count, 1, heads, suffix.layout.value_dim)
        self.kernels.attend(layer, self._table(index), self._members, self.step, query, out)
        return out

    def _layer(self, index: int, suffix: SuffixLayer, heads: int) -> Layer:
        if index not in self._layers:
            layout, blocks = suffix.layout, suffix.key_blocks
            if heads % layout.num_heads:
                raise ValueError(f"layer {index} has {heads} query heads on {layout.num_heads} key-value heads")
            self._layers[index] = Layer(
                heads=layout.num_heads,
                group=heads // layout.num_heads,
                key_dim=layout.key_dim,
                value_dim=layout.value_dim,
                block=blocks.shape[3],
                slots=blocks.shape[1],
                window=layout.window or 0,
                keys=suffix.key_blocks.data_ptr(),
                values=suffix.value_blocks.data_ptr(),
            )
        return self._layers[index]

    def _table(self, index: int) -> Tensor:
        if index not in self._tables:
            lines, first = [], 0
            for prefix, rows in self._groups:
                keys, values = prefix.keys[index], prefix.values[index]
                places = (keys.shape[-2], prefix.starts[index], prefix.length, first, len(rows))
                lines.append((keys.data_ptr(), values.data_ptr(), *places))
                first += len(rows)
            self._tables[index] = torch.tensor(lines, dtype=torch.int64, device="cpu").view(-1, 7)
        return self._tables[index]


def can_attend(layouts: Sequence[LayerLayout | None]) -> bool:
    """Whether the kernels can do the attention of all layers: float32 on a CPU."""
    layers = [layout for layout in layouts if layout is not None]
    return bool(layers) and all(one.dtype == torch.float32 and one.device.type == "cpu" for one in layers)
