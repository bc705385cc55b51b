"""Decode steps as CUDA graphs: launched as one, without Python and without a look at the host in between.

A graph holds one step of a tile for one kind of plan; all it reads lies in the tile's own buffers, which are written
between replays, and what it finds goes into a buffer of as many steps as are drawn ahead. Where a model cannot be
captured its engine continues eagerly, and says so once.
"""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from aisp_ray.engine.rows import Found
from aisp_ray.engine.runner import StepPlan, Tile
from aisp_ray.lm.memory import keep_cache, out_of_memory

log = logging.getLogger(__name__)


MOST = 64  # graphs of one tile: each holds what its steps found


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Captured:
    graph: Any
    plan: StepPlan  # its tensors are what the graph reads
    found: Found  # of the steps drawn ahead, where the graph writes


@dataclass(slots=True)
class Graphs:
    """What the graphs of an engine share: whether there are any, and memory, as one replays at a time.

    enabled: whether steps are recorded; off for good once a recording has failed.
    """

    enabled: bool
    _held: weakref.WeakSet[_Captured] = field(default_factory=weakref.WeakSet)
    _pool: Any = None

    def pool(self) -> Any:
        """CUDA gives up a pool with its last graph; the next one needs another."""
        if not self._held:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def add(self, captured: _Captured) -> None:
        self._held.add(captured)


@dataclass(slots=True)
class Capture:
    """The graphs of one tile, the least recently used dropped."""

    tile: Tile
    graphs: Graphs
    _held: OrderedDict[tuple, _Captured] = field(default_factory=OrderedDict)

    def run(self, phase: int, count: int, num_blocks: int) -> Found:
        """`count` steps from a phase of those drawn, captured where that is possible, without a look at the host."""
        tile = self.tile
        tile.phase.fill_(phase)
        if self.graphs.enabled and not tile.plan.laws:  # a feedback law is anybody's code
            captured = self._captured(num_blocks)
            if captured is not None:
                for _ in range(count):
                    captured.graph.replay()
                return captured.found.steps(phase, phase + count)
        return _joined([tile.step(num_blocks) for _ in range(count)])

    def _captured(self, num_blocks: int) -> _Captured | None:
        """The graph for this plan; None where it cannot be recorded."""
        name = (num_blocks, self.tile.width, self.tile.cache.attention.signature(), self.tile.plan.signature())
        held = self._held.get(name)
        if held is None:
            try:
                held = self._held[name] = self._record(num_blocks)
            except RuntimeError as error:
                if (lack := out_of_memory(error)) is not None:
                    raise lack from error
                log.warning("decode steps are not captured, which is slower: %s", error)
                self.graphs.enabled = False
                return None
        elif held.plan is not self.tile.plan:
            for mine, theirs in zip(held.plan.tensors(), self.tile.plan.tensors(), strict=True):
                mine.copy_(theirs)
            self.tile.plan = held.plan
        self._held.move_to_end(name)
        while len(self._held) > MOST:
            self._held.popitem(last=False)
        return held

    def _record(self, num_blocks: int) -> _Captured:
        with _restoring(self.tile.state()):
            found = self._warm_up(num_blocks)
        ring = Found(found.names, _ring(found.numbers, self.tile), _ring(found.prelogits, self.tile))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # thread_local: another thread, a reward model in this process, may allocate meanwhile
        options: dict[str, Any] = {"pool": self.graphs.pool(), "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **options):
                phase = self.tile.phase.clone()  # the step moves it on
                _write(ring, self.tile.step(num_blocks), phase)
        except BaseException:
            torch.cuda.set_stream(stream)  # where ending the capture fails too, nobody leaves its stream
            if _version("torch") < (2, 12):
                keep_cache()
            raise
        captured = _Captured(graph, self.tile.plan, ring)
        self.graphs.add(captured)
        return captured

    def _warm_up(self, num_blocks: int) -> Found:
        """A step, twice, for what happens at the first call of a kernel alone; then it must not wait for the device.

        Raises:
            RuntimeError: it does, so that a graph of it cannot be begun.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.tile.step(num_blocks)
            with _noticing_waits() as waits:
                found = self.tile.step(num_blocks)
        torch.cuda.current_stream().wait_stream(stream)
        if waits:
            raise RuntimeError(f"a step of this model waits for the device: {waits[0]}")
        return found


@contextmanager
def _restoring(state: list[torch.Tensor]) -> Iterator[None]:
    """What steps do to these tensors within it is undone."""
    before = [tensor.clone() for tensor in state]
    try:
        yield
    finally:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)


def _joined(found: list[Found]) -> Found:
    prelogits = [one.prelogits for one in found if one.prelogits is not None]
    return Found(found[0].names, torch.cat([one.numbers for one in found]), torch.cat(prelogits) if prelogits else None)


def _ring(one: torch.Tensor | None, tile: Tile) -> Any:
    """Room for what all steps drawn ahead find."""
    return None if one is None else one.new_zeros((tile.ring, *one.shape[1:]))


def _write(ring: Found, found: Found, phase: torch.Tensor) -> None:
    ring.numbers.index_copy_(0, phase, found.numbers)
    if ring.prelogits is not None and found.prelogits is not None:
        ring.prelogits.index_copy_(0, phase, found.prelogits)


@contextmanager
def _noticing_waits() -> Iterator[list[str]]:
    """What waits for the device within it and in this thread, by PyTorch's own warnings.

    Not its mode "error": that would raise in other threads as well, in which a reward model may wait rightly.
    """
    mine, mode = threading.get_ident(), torch.cuda.get_sync_debug_mode()
    found: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        if threading.get_ident() == mine and "synchroniz" in str(message):
            found.append(str(message).splitlines()[0])

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])
