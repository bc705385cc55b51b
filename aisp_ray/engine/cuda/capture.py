"""Decode steps as CUDA graphs: launched as one, without Python and without a look at the host in between.

A graph holds `count` steps of one tile for one kind of plan; all it reads lies in the tile's own buffers, which are
written between replays. Where a model cannot be captured its tile goes on eagerly, and says so once.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aisp_ray.engine.runner import StepPlan, Tile

log = logging.getLogger(__name__)


MOST = 32  # graphs of one tile: each holds what its steps found


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Captured:
    graph: Any
    plan: StepPlan  # its tensors are what the graph reads
    found: dict[str, Tensor]


class GraphPool:
    """Memory that the graphs of an engine share: one replays at a time, and what it found is read before the next."""

    def __init__(self) -> None:
        self._graphs: weakref.WeakSet[_Captured] = weakref.WeakSet()
        self._handle: Any = None

    def handle(self) -> Any:
        """CUDA gives up a pool with its last graph; the next one needs another."""
        if not self._graphs:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle

    def add(self, captured: _Captured) -> None:
        self._graphs.add(captured)


@dataclass(slots=True)
class Capture:
    """The graphs of one tile, the least recently used dropped."""

    tile: Tile
    enabled: bool
    pool: GraphPool
    _graphs: OrderedDict[tuple, _Captured] = field(default_factory=OrderedDict)

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
        self._graphs.move_to_end(name)
        while len(self._graphs) > MOST:
            self._graphs.popitem(last=False)
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
        # thread_local: another thread, a reward model in this process, may allocate meanwhile
        with torch.cuda.graph(graph, pool=self.pool.handle(), capture_error_mode="thread_local"):
            found = self.tile.run(count, num_blocks)
        captured = _Captured(graph, self.tile.plan, found)
        self.pool.add(captured)
        return captured
