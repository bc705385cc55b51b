"""Attention of a tile's rows by the engine's own kernels: prompts read once for all their rows, suffixes in place.

A row's numbers depend on the row and its prompt alone, whatever the tile's shape: no lanes of a fixed width, no keys
read beyond a row's position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aisp_ray.engine.cpu.kernels import Kernels, Lanes, Layer
from aisp_ray.engine.rowcache import Suffixes
from aisp_ray.engine.stacked import lanes_of
from aisp_ray.lm.attention import Call
from aisp_ray.lm.prefixes import LayerLayout, Prefix


class KernelAttention:
    """`RowAttention`; a lane is all rows of a prompt."""

    num_bytes = 0

    def __init__(self, suffixes: Suffixes, kernels: Kernels):
        self.suffixes, self.kernels = suffixes, kernels
        self._groups: list[tuple[Prefix, list[int]]] = []
        self._lanes: dict[int, Lanes] = {}  # by layer
        self._layers: dict[int, Layer] = {}

    def assign(self, owners: Sequence[Prefix | None]) -> None:
        self._groups = lanes_of(owners, most=len(owners))
        self._lanes.clear()

    def room(self, owners: Sequence[Prefix | None], prefix: Prefix) -> int:
        return self.suffixes.rows

    def signature(self) -> tuple[int, ...]:
        return ()

    def begin_step(self) -> None:
        last = int(self.suffixes.step.max())
        if last >= self.suffixes.length:
            raise ValueError(f"a row is at position {last} of a suffix of {self.suffixes.length}")

    def attend(self, call: Call) -> Tensor:
        index, query = call.layer, call.query
        layer = self._layer(index, query.shape[1])
        layer.scale, layer.softcap = call.scale, call.options.get("softcap") or 0.0
        if index not in self._lanes:
            self._lanes[index] = Lanes.of(layer, index, self._groups)
        _, keys, values = self.suffixes.layer(index)
        held = (keys, values, call.options.get("s_aux"))
        return self.kernels.attend(layer, held, self._lanes[index], self.suffixes.step, query)

    def _layer(self, index: int, heads: int) -> Layer:
        if index not in self._layers:
            layout = self.suffixes.layer(index)[0]
            if heads % layout.num_heads:
                raise ValueError(f"layer {index} has {heads} query heads on {layout.num_heads} key-value heads")
            self._layers[index] = Layer(
                heads=layout.num_heads,
                group=heads // layout.num_heads,
                key_dim=layout.key_dim,
                value_dim=layout.value_dim,
                block=self.suffixes.block,
                slots=self.suffixes.rows,
                window=layout.window or 0,
            )
        return self._layers[index]


def can_attend(layouts: Sequence[LayerLayout | None]) -> bool:
    """Whether the kernels can do the attention of all layers: float32 on a CPU."""
    layers = [layout for layout in layouts if layout is not None]
    return bool(layers) and all(one.dtype == torch.float32 and one.device.type == "cpu" for one in layers)
