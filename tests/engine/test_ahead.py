"""Steps that run ahead of the host, as on CUDA, here on the CPU: candidates, windows, widths, spans, noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import bits, drive, request, tiny

from aisp_ray.controls import weight_log
from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine import draws, runner, scheduler
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.draws import BEYOND, BROKEN, pick
from aisp_ray.engine.means import Means, Source
from aisp_ray.engine.rows import Readout
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.engine.stacked import round_up
from aisp_ray.types import Sampling

AHEAD, NARROW = Ways(ahead=True), Ways(ahead=True, narrow=True)


def engine(slots: int = 32, tile: int = 32, ways: Ways = AHEAD, name: str = "llama") -> FastEngine:
    return FastEngine(tiny(name), slots, max_new_tokens=24, tile=tile, ways=ways)


def tokens(found: list) -> list:
    return [[(item.token_ids, item.finish_reason) for item in one.items] for one in found]


# tokens of a few candidates


def logits(rows: int, size: int, spread: float, step: float = 0.0) -> torch.Tensor:
    found = spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(size))
    return (found / step).round() * step if step else found  # many are equally likely


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, 0.9), Sampling(0.7, 0.95), Sampling(1.0, 1.0, 40), Sampling(1.3, 0.8, 60)]
)
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_a_few_candidates_give_the_tokens_of_all_or_say_that_they_cannot(sampling: Sampling, step: float) -> None:
    rows, size = 256, 5000
    given = torch.cat([logits(rows // 2, size, 4.0, step), logits(rows // 2, size + 1, 1.5, step)[:, :size]])
    uniform = torch.linspace(1e-6, 1 - 1e-6, rows, dtype=torch.float64)[torch.randperm(rows)]
    whole = draws._truncated(given / sampling.temperature, sampling, uniform, None)
    found = pick(given, sampling, uniform, 256)
    sure = found != BEYOND
    assert torch.equal(found[sure], whole[sure])
    assert sure.sum() > rows // 4
    if sampling.top_k == 0:
        assert not sure.all()  # flat rows, whose nucleus has more than 256 tokens


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0, 0.9), Sampling(0.7, 0.95), Sampling(1.0, 1.0, 40), Sampling(1.0, 0.9, 300), Sampling(1, 1, 3000)],
)
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_a_cpu_ranks_as_many_tokens_as_a_row_needs(
    sampling: Sampling, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 9000
    flat = torch.zeros(2, size)
    flat[1, 1::2] = -torch.inf
    spreads = enumerate((5.0, 2.0, 0.3))
    given = torch.cat([*(logits(24, size + i, spread, step)[:, :size] for i, spread in spreads), flat])
    given[3, 17], given[30] = torch.nan, -torch.inf
    uniform = torch.linspace(1e-6, 1 - 1e-6, len(given), dtype=torch.float64)
    asked, likeliest = [], draws._likeliest
    monkeypatch.setattr(draws, "_likeliest", lambda one, count: (asked.append(len(one)), likeliest(one, count))[1])
    found = pick(given, sampling, uniform)
    assert found.tolist() == draws._truncated(given / sampling.temperature, sampling, uniform, None).tolist()
    assert (found == BROKEN).nonzero().flatten().tolist() == [3, 30]
    assert len(asked) == {0: 2, 40: 2, 300: 1, 3000: 0}[sampling.top_k]  # then all of the vocabulary
    assert all(rows < len(given) for rows in asked[1:])


def test_forbidden_tokens_do_not_make_a_candidate_too_few() -> None:
    given = torch.full((4, 4096), -torch.inf)
    given[:, 7:17] = logits(4, 10, 1.0)
    uniform = torch.full((4,), 0.5, dtype=torch.float64)
    for sampling in (Sampling(1.0, 0.9), Sampling(1.0, top_k=30)):
        assert pick(given, sampling, uniform, 64).tolist() == pick(given, sampling, uniform).tolist()


def test_rows_whose_nucleus_is_wider_are_decoded_again_from_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        request(9, 6, 20, sampling=Sampling(1.0, top_p=0.9), seed=1),
        request(9, 4, 20, OpenLoop(20, None, 1.0), seed=2),
        request(9, 5, 12, sampling=Sampling(1.5, top_p=0.95), seed=3, prefixes=((4, 5),) * 5),
    ]
    expected = drive(engine(), asked)
    monkeypatch.setattr(runner, "candidates_on", lambda _: 8)
    mine, again = engine(), []
    retry = mine._retry_or_fail
    monkeypatch.setattr(mine, "_retry_or_fail", lambda *args: (again.append(args[2]), retry(*args)))
    assert tokens(drive(mine, asked)) == tokens(expected)
    assert set(again) == {BEYOND}
    assert len(again) <= 11  # each row of the two that sample, once


# windows


def short(count: int, length: int) -> list:
    return [request(5, 8, length, OpenLoop(length, None, 1.0), seed=i) for i in range(count)]


def test_slots_are_refilled_sooner_where_responses_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [request(5, 8, n, OpenLoop(n, None, 1.0), seed=n) for n in (17, 19, 21, 23, 18, 22)]
    shares, found = {}, {}
    for always in (True, False):
        mine = engine(16, 16)
        if always:
            monkeypatch.setattr(mine, "_window", lambda: 8)
        found[always] = tokens(drive(mine, asked))
        stats = mine.stats()
        shares[always] = stats["busy_useful_row_steps"] / stats["busy_row_steps"]
    assert shares[True] < 0.9
    assert shares[False] > 0.95
    assert found[True] == found[False]


def test_windows_are_long_where_responses_are_and_end_with_the_longest_row() -> None:
    mine, seen = engine(), []
    window = mine._window
    mine._window = lambda: seen.append(window()) or seen[-1]  # type: ignore[method-assign]
    drive(mine, short(2, 18))
    assert seen == [8, 8, 2]
    mine._usual_length = 500.0
    for one in short(8, 20):
        mine.submit(one)
    mine.step()
    assert seen[-1] == 8
    mine._usual_length = 3.0
    mine.step()
    assert seen[-1] == 1


def test_all_tiles_are_launched_before_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, order = engine(slots=32, tile=8), []
    decode, wait = mine._decode, Readout.wait
    monkeypatch.setattr(mine, "_decode", lambda *args: (order.append("launch"), decode(*args))[1])
    monkeypatch.setattr(Readout, "wait", lambda self: (order.append("read"), wait(self))[1])
    for one in short(4, 20):
        mine.submit(one)
    mine.step()
    assert order == ["launch"] * 4 + ["read"] * 4


# widths, lanes and spans


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_steps_narrow_with_their_rows_and_tiles_merge(name: str) -> None:
    stop = StopRules(tuple(range(3, 14)))
    asked = [request(9 + 30 * i, 16, 24, OpenLoop(24, None, 1.0), seed=i, stop=stop) for i in range(6)]
    whole, narrow = engine(64, 32, name=name), engine(64, 32, NARROW, name)
    expected, found = drive(whole, asked), drive(narrow, asked)
    assert tokens(found) == tokens(expected)
    assert narrow.fingerprint["widths"] == (16, 32)
    assert narrow.stats()["row_steps"] < whole.stats()["row_steps"]


def test_one_search_runs_as_wide_as_its_rows() -> None:
    mine = engine(64, 64, NARROW)
    drive(mine, [request(9, 16, 16, OpenLoop(16, None, 1.0))])
    assert mine.stats()["row_steps"] == 16 * 16
    assert mine.slots.tiles[0].cache.attention._lanes == 1


@pytest.mark.parametrize("ways", [AHEAD, NARROW])
def test_the_stack_is_as_long_as_the_prompts_in_flight(ways: Ways) -> None:
    lengths = (5, 127, 128, 129, 256, 257, 600)
    asked = [request(n, 2, 6, OpenLoop(6, None, 1.0), seed=n) for n in lengths]
    mine = FastEngine(tiny("llama"), 16, max_new_tokens=8, tile=16, ways=ways)
    (tile,) = mine.slots.tiles
    sizes, read = [], []
    for one, n in zip(asked, lengths, strict=True):
        expected = drive(FastEngine(tiny("llama"), 4, max_new_tokens=8, tile=4), [one])
        assert tokens(drive(mine, [one])) == tokens(expected)
        attention = tile.cache.attention
        read.append(sum(keys.shape[2] for keys, _ in attention._spans[0][: attention._read[0]]))
        sizes.append(attention.num_bytes // (attention.num_lanes * 2 * 2 * 2 * 16 * 4))  # layers, k and v, heads, width
        assert read[-1] == round_up(n)
    assert sizes == [128, 128, 128, 256, 256, 512, 1024]
    assert tokens(drive(mine, asked[:1])) == tokens(drive(FastEngine(tiny("llama"), 4, max_new_tokens=8), asked[:1]))
    assert tile.cache.attention._read[0] == 1  # the long one is gone


def test_a_prompts_length_beside_it_changes_no_bit_of_a_row() -> None:
    want = frozenset({"prelogits", "logprob"})
    mine = request(20, 4, 8, OpenLoop(8, None, 1.0), want=want)
    alone = drive(engine(), [mine])[0]
    beside = drive(engine(), [request(300, 4, 8, seed=5), mine])[1]
    assert bits(alone) == bits(beside)


# noise and means


def test_a_mean_is_rebuilt_in_pieces_of_bounded_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    n, horizon = 6, 40
    weights, lengths = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1), (40, 3, 9, 40, 12, 40)
    log = WeightLog((WeightEntry(0, weights, lengths, 0.7), WeightEntry(1, weights[::-1], lengths, 0.7, start=5)))
    source = Source(17, engine().head, torch.device("cpu"), lambda _: [])
    whole = log.fold(source, horizon)
    sizes = []
    normal = draws.normal

    def spied(key: Any, iteration: Any, particle: Any, step: Any, dim: int) -> torch.Tensor:
        sizes.append(len(step) * dim)
        return normal(key, iteration, particle, step, dim)

    monkeypatch.setattr(draws, "normal", spied)
    monkeypatch.setattr(weight_log, "NOISE_ELEMENTS", 7 * n * source.dim)
    monkeypatch.setitem(draws._CHUNK, "cpu", 100)
    torch.testing.assert_close(log.fold(source, horizon), whole, rtol=0, atol=0)
    assert max(sizes) <= 400
    assert len(sizes) > 2 * horizon * n * source.dim // 400


def test_means_stay_within_their_bytes() -> None:
    means = Means(limit_bytes=10 * 4 * 8)
    for i in range(9):
        means._keep(i, torch.zeros(4, 2))
    assert means.num_bytes == 9 * 32
    for i in range(9, 15):
        means._keep(i, torch.zeros(4, 2))
    assert list(means._held) == list(range(5, 15))
    means._keep("wide", torch.zeros(400, 2))
    assert list(means._held) == ["wide"]


def test_an_engine_bounds_its_means_by_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "free_bytes", lambda _: 1 << 30)
    assert engine().means._limit_bytes == 1 << 26
