"""Slots: stacked prefixes with fixed addresses, compaction at the end, and going on with less memory."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_models import bits, drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine import stacked
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.runner import Tile
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.types import Sampling

AHEAD = Ways(ahead=True)
WANT = frozenset({"logprob", "prelogits"})


def work(count: int = 5) -> list:
    """Requests whose rows end at different times."""
    lengths = (9, 30, 5, 17, 9)
    stop = StopRules(tuple(range(3, 12)))
    return [
        request(lengths[i % 5], 5 + i % 3, 12, OpenLoop(12, None, 1.0), seed=i, stop=stop, want=WANT)
        for i in range(count)
    ]


def tokens(found: list) -> list:
    return [[(item.token_ids, item.finish_reason) for item in rollouts.items] for rollouts in found]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt_oss", "lfm2"])
def test_stacked_prefixes_and_steps_read_in_batches_give_the_same_rows(name: str) -> None:
    model = tiny(name)
    stepped = drive(FastEngine(model, 16, max_new_tokens=12, tile=16), work())  # on a CPU, read after every step
    engine = FastEngine(model, 16, max_new_tokens=12, tile=16, ways=AHEAD)
    found = drive(engine, work())
    assert tokens(found) == tokens(stepped)
    for one, other in zip(found, stepped, strict=True):
        for a, b in zip(one.items, other.items, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
            assert a.control_inner == b.control_inner


def test_stacked_rows_do_not_depend_on_neighbours_either() -> None:
    model = tiny("gemma3")
    engine = lambda: FastEngine(model, 16, max_new_tokens=12, tile=16, ways=AHEAD)  # noqa: E731
    alone = drive(engine(), work()[1:2])[0]
    among = drive(engine(), work()[::-1])[-2]
    assert bits(alone) == bits(among)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_prompts_of_several_spans_are_those_of_one_span_and_no_neighbour_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(name)
    engine = lambda: FastEngine(model, 16, max_new_tokens=12, tile=16, ways=Ways(kernels=False))  # noqa: E731
    whole = drive(engine(), work())
    monkeypatch.setattr(stacked, "SPAN", 8)
    spans = drive(engine(), work())
    assert tokens(spans) == tokens(whole)
    short = work()[2]  # of one span, beside prompts of up to four
    if name != "gpt_oss":  # an expert's product has as many rows as chose it
        assert bits(spans[2]) == bits(drive(engine(), [short])[0])


def test_a_prompt_longer_than_the_engine_takes_is_answered_with_an_error() -> None:
    engine = FastEngine(tiny("llama"), 16, max_new_tokens=12, tile=16, longest_prompt=8)
    engine.submit(request(9))
    ((_, error),) = engine.step()
    assert isinstance(error, ValueError)
    assert "9 tokens" in str(error)


def test_sampling_and_prefixes_work_in_batches_of_steps() -> None:
    model = tiny("llama")
    asked = [
        request(n=3, sampling=Sampling(1.0, top_p=0.8), prefixes=((4, 5, 6), (), (7,) * 9)),
        request(n=4, tokens=1, sampling=Sampling(branch_first=True)),
        request(n=4, stop=StopRules(tuple(range(3, 60)), min_new_tokens=3)),
    ]
    stepped = drive(FastEngine(model, 16, max_new_tokens=12, tile=16), asked)
    assert tokens(drive(FastEngine(model, 16, max_new_tokens=12, tile=16, ways=AHEAD), asked)) == tokens(stepped)


def test_the_last_rows_move_together_and_stay_the_same_rows() -> None:
    model = tiny("lfm2")
    engine = FastEngine(model, 40, max_new_tokens=12, tile=8)
    found = drive(engine, work())
    alone = [drive(FastEngine(model, 8, max_new_tokens=12, tile=8), [one])[0] for one in work()]
    assert [bits(one) for one in found] == [bits(one) for one in alone]
    never = FastEngine(model, 40, max_new_tokens=12, tile=8)
    never.slots.compact = lambda: None
    drive(never, work())
    assert engine.stats()["row_steps"] < never.stats()["row_steps"]
    assert engine.stats()["useful_row_steps"] == never.stats()["useful_row_steps"]


def fail_at(monkeypatch: pytest.MonkeyPatch, calls: tuple[int, ...]) -> None:
    """Memory runs out at these calls of the body."""
    count, forward = [0], Tile.forward

    def sometimes(self: Tile, num_blocks: int) -> None:
        count[0] += 1
        if count[0] in calls:
            raise torch.OutOfMemoryError("CUDA out of memory (as if)")
        forward(self, num_blocks)

    monkeypatch.setattr(Tile, "forward", sometimes)


def test_out_of_memory_means_fewer_slots_and_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llama")
    expected = [bits(one) for one in drive(FastEngine(model, 24, max_new_tokens=12, tile=8), work())]
    fail_at(monkeypatch, (7, 20))
    engine = FastEngine(model, 24, max_new_tokens=12, tile=8)
    with caplog.at_level(logging.WARNING, "aisp_ray"):
        found = drive(engine, work())
    assert [bits(one) for one in found] == expected
    assert engine.slots.count == 8
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: continuing with 16 slots in tiles of 8",
        "out of memory: continuing with 8 slots in tiles of 8",
    ]


def test_the_last_tile_is_halved_and_the_tokens_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    expected = tokens(drive(FastEngine(model, 8, max_new_tokens=12, tile=8), work()))
    fail_at(monkeypatch, (3,))
    engine = FastEngine(model, 8, max_new_tokens=12, tile=8)
    assert tokens(drive(engine, work())) == expected
    assert engine.fingerprint["tile"] == 4


def test_out_of_memory_with_a_single_row_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, tuple(range(1, 99)))
    with pytest.raises(torch.OutOfMemoryError):
        drive(FastEngine(tiny("llama"), 4, max_new_tokens=12, tile=4), work(1))


def test_a_prompt_that_does_not_fit_waits_for_rows_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    expected = tokens(drive(FastEngine(model, 16, max_new_tokens=12, tile=16), work()))
    engine = FastEngine(model, 16, max_new_tokens=12, tile=16)
    read, failures = engine.store.read, [1]

    def sometimes(ids: object) -> object:
        if engine._active and failures[0]:
            failures[0] -= 1
            raise torch.OutOfMemoryError("as if")
        return read(ids)

    engine.store.read = sometimes
    assert tokens(drive(engine, work())) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_captured_steps_give_the_rows_of_eager_steps(name: str) -> None:
    model = tiny(name).cuda()
    captured = FastEngine(model, 16, max_new_tokens=12, tile=16, ways=AHEAD)
    assert captured.slots.graphs.enabled
    found = drive(captured, work())
    assert captured.slots.graphs.enabled
    eager = FastEngine(model, 16, max_new_tokens=12, tile=16, ways=AHEAD)
    eager.slots.graphs.enabled = False
    assert [bits(one) for one in found] == [bits(one) for one in drive(eager, work())]
