"""Memory: what a slot takes is counted, what is given up is free at once, and what does not fit is halved."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine import scheduler, slots
from aisp_ray.engine.factory import LEAST_LONGEST, _longest
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import RING, Ways, row_bytes
from aisp_ray.types import Sampling

AHEAD = (False, True)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Garbage in cycles stays, as on a GPU machine where nothing else asks for a collection."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def work() -> list:
    return [request(n=8, tokens=12, control=OpenLoop(12, None, 1.0), seed=seed) for seed in range(3)]


def tokens(found: list) -> list:
    return [[item.token_ids for item in rollouts.items] for rollouts in found]


def engine(ahead: bool, **more: Any) -> FastEngine:
    return FastEngine(tiny("llama"), 16, max_new_tokens=12, tile=16, ways=Ways(ahead=ahead), **more)


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_tile_that_is_given_up_holds_no_memory_when_the_next_one_is_built(
    ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens(drive(engine(ahead), work()))
    mine = engine(ahead)
    decode, new_tile, seen, held = mine._decode, mine.slots._new, [], []

    def fail_once(tile: Any, count: int) -> Any:
        if not held:
            held.extend(weakref.ref(t) for t in (*tile.suffixes.buffers(), tile.hidden, tile.control))
            held.extend(
                weakref.ref(t) for spans in getattr(tile.cache.attention, "_spans", ()) for span in spans for t in span
            )
            raise torch.OutOfMemoryError("as if")
        return decode(tile, count)

    def build() -> Any:
        seen.append([ref() is None for ref in held])
        return new_tile()

    monkeypatch.setattr(mine, "_decode", fail_once)
    monkeypatch.setattr(mine.slots, "_new", build)
    assert tokens(drive(mine, work())) == expected
    assert mine.fingerprint["tile"] == 8
    assert seen[-1]
    assert all(seen[-1])


@pytest.mark.parametrize("ahead", AHEAD)
def test_an_engine_that_nobody_has_holds_no_memory(ahead: bool, no_collector: None) -> None:
    mine = engine(ahead)
    drive(mine, work())
    buffer = weakref.ref(mine.slots.tiles[0].suffixes.buffers()[0])
    del mine
    assert buffer() is None


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_first_tile_that_does_not_fit_is_halved(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens(drive(engine(ahead), work()))
    suffixes = slots.Suffixes

    def small(layouts: Any, rows: int, *more: Any, **named: Any) -> Any:
        if rows > 4:
            raise torch.OutOfMemoryError("as if")
        return suffixes(layouts, rows, *more, **named)

    monkeypatch.setattr(slots, "Suffixes", small)
    mine = engine(ahead)
    assert tokens(drive(mine, work())) == expected
    assert (mine.slots.count, mine.fingerprint["tile"]) == (4, 4)


def test_not_even_one_slot_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("as if")

    monkeypatch.setattr(slots, "Suffixes", never)
    with pytest.raises(torch.OutOfMemoryError):
        engine(False)


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_what_a_slot_takes_has_its_part_of_the_stacked_prompts(name: str) -> None:
    mine = FastEngine(tiny(name), 64, max_new_tokens=24, tile=64, ways=Ways(ahead=True))
    drive(mine, [request(100, 4, 4)])
    (tile,) = mine.slots.tiles
    counted = [row_bytes(mine.slots.layouts, 24, mine.head, RING, stacked) for stacked in (128, 0)]
    assert counted[0] - counted[1] == tile.cache.attention.num_bytes / 64
    assert counted[0] > tile.cache.num_bytes / 64


def test_automatic_slots_leave_room_for_the_stacked_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "free_bytes", lambda _: 20_000_000)
    engines = [
        FastEngine(tiny("llama"), "auto", max_new_tokens=16, longest_prompt=n, ways=Ways(ahead=True))
        for n in (16, 2048)
    ]
    assert [engine.slots.count for engine in engines] == [128, 64]


def test_a_gpus_slots_are_planned_for_the_longest_prompt_that_the_policy_takes() -> None:
    model = SimpleNamespace(device=torch.device("cuda"), config=tiny("llama").config)
    model.config.max_position_embeddings = 4096
    assert [_longest(model, longest) for longest in (None, 3000, 100_000, 3)] == [None, 3000, 4096, LEAST_LONGEST]
    model.device = torch.device("cpu")
    assert _longest(model, 3000) is None


@pytest.mark.parametrize("ahead", AHEAD)
def test_all_time_is_charged_to_the_requests_that_it_was_spent_on(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = FastEngine(tiny("llama"), 8, max_new_tokens=12, tile=8, ways=Ways(ahead=ahead))
    now, spent = [0.0], []
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(seconds: float, call: Any) -> Any:
        def timed(*args: Any) -> Any:
            now[0] += seconds
            spent.append(seconds)
            return call(*args)

        return timed

    monkeypatch.setattr(mine, "_decode", takes(8.0, mine._decode))
    monkeypatch.setattr(mine, "_begin", takes(1.0, mine._begin))
    asked = [
        request(n=3, tokens=1, sampling=Sampling(branch_first=True)),
        request(n=1, tokens=1, seed=1),
        request(n=9, tokens=11, seed=2),
        request(n=2, tokens=4, seed=3),
    ]
    found = drive(mine, asked)
    assert sum(rollouts.seconds for rollouts in found) == pytest.approx(sum(spent))
    # both have rows in the first step only: three and one, beside four of the third, which has no lane if stacked
    shared = 8.0 / (4 if ahead else 8)
    assert [rollouts.seconds for rollouts in found[:2]] == pytest.approx([1 + 3 * shared, 1 + shared])
