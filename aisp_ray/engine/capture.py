"""Decode steps as CUDA graphs: launched as one, without Python and without a look at the host in between.

A graph holds `count` steps of one tile for one kind of plan; all it reads lies in the tile's own buffers, which are
written between replays. Where a model cannot be captured its tile goes on eagerly, and says so once.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aisp_ray.engine.tile import Plan, Tile

log = logging.getLogger(__name__)


@functools.cache
def _pool() -> Any:
    """Memory that all graphs share: one replays at a time, and what it found is read before the next."""
    return torch.cuda.graph_pool_handle()


@dataclass(slots=True)
class _Captured:
    graph: Any
    plan: Plan  # its tensors are what the graph reads
    found: dict[str, Tensor]


@dataclass(slots=True)
class Capture:
    """The graphs of one tile."""

    tile: Tile
    enabled: bool
    _graphs: dict[tuple, _Captured] = field(default_factory=dict)

    def run(self, count: int, num_blocks: int) -> dict[str, Tensor]:
        """`Tile.run`, captured where that is possible."""
        if not self.enabled or self.tile.plan.laws:  # a feedback law is anybody's code
            return self.tile.run(count, num_blocks)
        name = (count, num_blocks, self.tile.plan.signature())
        held = self._graphs.get(name)
        if held is None:
            try:
                held = self._graphs[name] = self._record(count, num_blocks)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.warning("decode steps are not captured, which is slower: %s", error)
                self.enabled = False
                return self.tile.run(count, num_blocks)
        elif held.plan is not self.tile.plan:
            for mine, theirs in zip(held.plan.tensors(), self.tile.plan.tensors(), strict=True):
                mine.copy_(theirs)
            self.tile.plan = held.plan
        held.graph.replay()
        return held.found

    def _record(self, count: int, num_blocks: int) -> _Captured:
        state = self.tile.state()
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # the first calls of a kernel allocate, which a graph may not
            self.tile.run(1, num_blocks)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=_pool()):
            found = self.tile.run(count, num_blocks)
        return _Captured(graph, self.tile.plan, found)
