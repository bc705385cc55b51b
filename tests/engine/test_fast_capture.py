"""Recorded steps: few graphs, whatever the mixture of rows; shared memory; other threads may allocate."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import drive, request, tiny

from aisp_ray.engine.base import StopRules
from aisp_ray.engine.cuda import capture
from aisp_ray.engine.cuda.capture import Capture, GraphPool
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.types import Sampling


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> set:
    """What steps would be recorded under."""
    found: set = set()

    def run(self: Capture, count: int, num_blocks: int) -> dict:
        found.add((count, num_blocks, self.tile.plan.signature()))
        return self.tile.run(count, num_blocks)

    monkeypatch.setattr(Capture, "run", run)
    return found


def engine() -> FastEngine:
    return FastEngine(tiny("llama"), 32, max_new_tokens=24, tile=32, stack=64)


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


def test_a_tile_keeps_the_graphs_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MOST", 3)
    recorded, replayed = [], []

    def record(self: Capture, count: int, num_blocks: int) -> Any:
        recorded.append(num_blocks)
        graph = SimpleNamespace(replay=lambda: replayed.append(num_blocks))
        return capture._Captured(graph, self.tile.plan, {})

    monkeypatch.setattr(Capture, "_record", record)
    tile = SimpleNamespace(plan=SimpleNamespace(laws=[], signature=tuple, tensors=list))
    mine = Capture(tile, True, GraphPool())
    asked = [1, 2, 3, 1, 4, 1, 2]
    for num_blocks in asked:
        mine.run(8, num_blocks)
    assert replayed == asked
    assert recorded == [1, 2, 3, 4, 2]
    assert len(mine._graphs) == 3


def test_graphs_share_a_pool_that_ends_with_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    pool = GraphPool()
    graphs = [capture._Captured(None, None, {}) for _ in range(2)]
    found = []
    for graph in graphs:
        found.append(pool.handle())
        pool.add(graph)
    graphs.pop()
    found.append(pool.handle())
    del graph
    graphs.clear()
    found.append(pool.handle())
    assert found == [0, 0, 0, 1]


def test_other_threads_may_allocate_while_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    @contextlib.contextmanager
    def graph(_: Any, **options: Any) -> Iterator[None]:
        asked.update(options)
        yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    fakes = {
        "graph": graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph_pool_handle": lambda: (0, 1),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    plain = drive(engine(), [request(n=4, tokens=8)])
    mine = engine()
    for one in mine.slots.captures.values():
        one.enabled = True
    assert [item.token_ids for item in drive(mine, [request(n=4, tokens=8)])[0].items] == [
        item.token_ids for item in plain[0].items
    ]
    assert asked == {"pool": (0, 1), "capture_error_mode": "thread_local"}
