"""Recorded steps: few graphs, whatever the mixture of rows; shared memory; a recording that fails leaves all as it was.

There is no GPU here: recording runs on the CPU (`asked`), with a graph that runs the step when it is replayed.
"""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import bits, drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.cuda import capture
from aisp_ray.engine.cuda.capture import Capture, Graphs
from aisp_ray.engine.runner import Tile
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.types import Sampling

WANT = frozenset({"logprob", "prelogits"})


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> set:
    """What steps would be recorded under."""
    found: set = set()
    run = Capture.run

    def note(self: Capture, phase: int, count: int, num_blocks: int) -> Any:
        found.add((num_blocks, self.tile.width, self.tile.cache.attention.signature(), self.tile.plan.signature()))
        return run(self, phase, count, num_blocks)

    monkeypatch.setattr(Capture, "run", note)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Recording on the CPU. A graph's `replay` runs the step. Returns what `torch.cuda.graph` was asked for."""
    asked: dict[str, Any] = {"streams": [], "mode": 0}

    @contextlib.contextmanager
    def graph(_: Any, **options: Any) -> Iterator[None]:
        asked["graph"] = options
        yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    fakes = {
        "graph": graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "set_stream": asked["streams"].append,
        "stream": lambda _: contextlib.nullcontext(),
        "CUDAGraph": SimpleNamespace,
        "graph_pool_handle": lambda: (0, 1),
        "get_sync_debug_mode": lambda: asked["mode"],
        "set_sync_debug_mode": lambda mode: asked.update(mode=mode),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(capture, "keep_cache", lambda: asked.update(kept=True))
    record = Capture._record

    def recorded(self: Capture, num_blocks: int) -> Any:
        with capture._restoring(self.tile.state()):  # what is recorded does not run
            captured = record(self, num_blocks)

        def replay() -> None:
            assert self.tile.plan is captured.plan
            capture._write(captured.found, self.tile.step(num_blocks), self.tile.phase.clone() - 1)

        captured.graph = SimpleNamespace(replay=replay)
        return captured

    def write(ring: Any, found: Any, phase: torch.Tensor) -> None:
        at = phase % ring.numbers.shape[0]
        ring.numbers.index_copy_(0, at, found.numbers)
        if ring.prelogits is not None:
            ring.prelogits.index_copy_(0, at, found.prelogits)

    monkeypatch.setattr(Capture, "_record", recorded)
    monkeypatch.setattr(capture, "_write", write)
    return asked


def engine(**more: Any) -> FastEngine:
    return FastEngine(tiny("llama"), 32, max_new_tokens=24, ways=Ways(ahead=True), **{"tile": 32, **more})


def recording(**more: Any) -> FastEngine:
    mine = engine(**more)
    mine.slots.graphs.enabled = True
    return mine


def work() -> list:
    """Kinds of rows that come and go at different times."""
    return [
        request(9, 5, 12, OpenLoop(12, None, 1.0), want=WANT),
        request(30, 7, 20, sampling=Sampling(0.9, top_p=0.8), seed=1),
        request(5, 20, 24, OpenLoop(24, None, 0.5), seed=2, stop=StopRules(tuple(range(3, 20)), min_new_tokens=3)),
        request(9, 4, 9, sampling=Sampling(branch_first=True), prefixes=((4, 5),) * 4, seed=3),
    ]


def test_a_search_token_by_token_needs_a_graph_or_two(names: set) -> None:
    mine, prefix = engine(), ()
    for length in range(1, 20):
        branches = Sampling(branch_first=True)
        (found,) = drive(mine, [request(n=4, tokens=length, sampling=branches, prefixes=(prefix,) * 4)])
        prefix = found.items[0].token_ids
    assert len(names) <= 2  # with given tokens and without


def test_the_order_of_rows_makes_no_new_graph(names: set) -> None:
    mine, order = engine(), random.Random(0)
    kinds = [
        (Sampling(temperature, 0.9), StopRules(ends, min_new_tokens=24))
        for temperature, ends in ((0.0, (5,)), (1.0, (7, 6)), (0.8, (8, 9)))
    ]
    for _ in range(12):
        order.shuffle(kinds)
        drive(mine, [request(n=8, tokens=8, seed=i, sampling=s, stop=stop) for i, (s, stop) in enumerate(kinds)])
    assert len(names) == 1


def test_recorded_steps_give_the_rows_of_eager_ones(asked: dict[str, Any]) -> None:
    mine = recording()
    found = drive(mine, work())
    assert [bits(one) for one in found] == [bits(one) for one in drive(engine(), work())]
    assert len(mine.slots.captures[mine.slots.tiles[0]]._held) > 1
    # another thread may allocate while a step is recorded
    assert asked["graph"] == {"pool": (0, 1), "capture_error_mode": "thread_local"}


def test_a_tile_keeps_the_graphs_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MOST", 3)
    recorded = []

    def record(self: Capture, num_blocks: int) -> Any:
        recorded.append(num_blocks)
        return capture._Captured(None, self.tile.plan, SimpleNamespace())

    monkeypatch.setattr(Capture, "_record", record)
    attention = SimpleNamespace(signature=tuple)
    plan = SimpleNamespace(laws=[], signature=tuple, tensors=list)
    mine = Capture(SimpleNamespace(plan=plan, width=1, cache=SimpleNamespace(attention=attention)), Graphs(True))
    for num_blocks in (1, 2, 3, 1, 4, 1, 2):
        mine._captured(num_blocks)
    assert recorded == [1, 2, 3, 4, 2]
    assert len(mine._held) == 3


def test_graphs_share_a_pool_that_ends_with_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    shared = Graphs(True)
    graphs = [capture._Captured(None, None, None) for _ in range(2)]
    found = []
    for graph in graphs:
        found.append(shared.pool())
        shared.add(graph)
    graphs.pop()
    found.append(shared.pool())
    del graph
    graphs.clear()
    found.append(shared.pool())
    assert found == [0, 0, 0, 1]


def test_a_step_that_waits_for_the_device_is_never_recorded(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = drive(engine(tile=8), work())
    step = Tile.step

    def waits(self: Tile, num_blocks: int) -> Any:
        if asked["mode"] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return step(self, num_blocks)

    monkeypatch.setattr(Tile, "step", waits)
    mine = recording(tile=8)
    with caplog.at_level(logging.WARNING, "aisp_ray"):
        found = drive(mine, work())
    assert [bits(one) for one in found] == [bits(one) for one in expected]
    assert "graph" not in asked
    assert asked["mode"] == 0  # as it was
    assert len(mine.slots.tiles) > 1
    (line,) = caplog.records  # once for all tiles
    assert "waits for the device: called a synchronizing" in line.getMessage()


def breaking(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the first recording raises, as after an illegal call in it."""
    left, whole = [1], torch.cuda.graph

    @contextlib.contextmanager
    def graph(*args: Any, **options: Any) -> Iterator[None]:
        with whole(*args, **options):
            yield
        if left:
            left.clear()
            raise error

    monkeypatch.setattr(torch.cuda, "graph", graph)


@pytest.mark.parametrize(("torch_version", "kept"), [((2, 11), True), ((2, 12), False)])
def test_a_recording_that_breaks_leaves_its_stream_and_the_rows(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, torch_version: tuple[int, ...], kept: bool
) -> None:
    monkeypatch.setattr(capture, "_version", lambda _: torch_version)
    breaking(RuntimeError("operation failed due to a previous error during capture"), monkeypatch)
    mine = recording()
    stepped = Tile.step
    found = drive(mine, work()[:1])
    assert [item.token_ids for item in found[0].items] == [
        item.token_ids for item in drive(engine(), work()[:1])[0].items
    ]
    assert asked["streams"] == [torch.cuda.current_stream()]
    assert asked.get("kept", False) is kept  # emptying the cache would fail for good
    assert not mine.slots.graphs.enabled
    assert stepped is Tile.step


def test_out_of_memory_in_a_recording_halves_the_tile(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("as if")
    breaking(error, monkeypatch)
    mine = recording()
    found = drive(mine, work())
    assert mine.fingerprint["tile"] == 16
    assert mine.slots.graphs.enabled
    expected = drive(engine(tile=16), work())
    assert [[item.token_ids for item in one.items] for one in found] == [
        [item.token_ids for item in one.items] for one in expected
    ]
