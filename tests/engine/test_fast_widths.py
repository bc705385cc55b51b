"""Steps on fewer slots than a tile has: only where a row keeps every bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import bits, drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.cpu import kernels
from aisp_ray.engine.cpu.kernels import usable
from aisp_ray.engine.cpu.packing import Packing, candidates
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.lm.attention import VECTORS, whole_vectors

needs_compiler = pytest.mark.skipif(kernels.load() is None, reason="no C compiler")
WANT = frozenset({"logprob", "prelogits", "token_kl"})
MEAN = WeightLog((WeightEntry(0, (0.1, 0.2, 0.3, 0.2, 0.1, 0.1), (12, 3, 9, 12, 12, 5), 1.0),))


def work() -> list:
    """Requests whose rows end one by one, in every kind of order."""
    stop = StopRules(tuple(range(3, 12)))
    return [
        request(5 + 6 * i, 6, 12, OpenLoop(12, MEAN if i % 2 else None, 1.0), seed=i, iteration=1, stop=stop, want=WANT)
        for i in range(5)
    ]


def engine(model: Any, slots: int = 32, tile: int = 32) -> FastEngine:
    return FastEngine(model, slots, max_new_tokens=12, tile=tile)


def always_whole(model: Any, tile: int = 32) -> FastEngine:
    whole = engine(model, tile=tile)
    for one in whole.slots.tiles:
        one.widths = (tile,)
    return whole


# soft-caps, windows, sinks, states
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt_oss", "lfm2"])
@pytest.mark.usefixtures("products")
def test_steps_on_fewer_slots_change_no_bit(name: str) -> None:
    change_no_bit(tiny(name))


def test_steps_on_fewer_slots_change_no_bit_of_bfloat16() -> None:
    change_no_bit(tiny("llama", torch.bfloat16))  # never by the kernels


def change_no_bit(model: object) -> None:
    fitted, whole = engine(model), always_whole(model)
    found, expected = drive(fitted, work()), drive(whole, work())
    assert [bits(one) for one in found] == [bits(one) for one in expected]
    assert fitted.stats()["useful_row_steps"] == whole.stats()["useful_row_steps"]
    if len(fitted.fingerprint["widths"]) > 1:
        assert fitted.stats()["row_steps"] < whole.stats()["row_steps"]


@needs_compiler
def test_a_small_llama_in_float32_is_stepped_on_fewer_slots() -> None:
    fitted = engine(tiny("llama"))
    assert len(fitted.fingerprint["widths"]) > 4
    drive(fitted, work())
    stats = fitted.stats()
    assert stats["useful_row_steps"] / stats["row_steps"] > 0.8


@pytest.mark.parametrize(
    ("name", "kernels"),
    [("qwen3_moe", True), ("gpt_oss", True), ("lfm2", True), ("gpt2", True), ("llama", False)],
    ids=["experts", "experts with sinks", "convolutions", "layers that are no nn.Linear", "no kernels"],
)
def test_products_that_are_not_the_kernels_are_always_of_a_whole_tile(name: str, kernels: bool) -> None:
    assert FastEngine(tiny(name), 32, max_new_tokens=12, tile=32, ways=Ways(kernels=kernels)).fingerprint["widths"] == (
        32,
    )


def test_captured_shapes_stay_whole() -> None:
    stacked = FastEngine(tiny("llama"), 16, max_new_tokens=12, tile=16, ways=Ways(ahead=True))
    assert stacked.fingerprint["widths"] == (16,)
    drive(stacked, work()[:2])
    assert stacked.stats()["row_steps"] % 16 == 0


@needs_compiler
def test_numbers_of_slots_fill_whole_vectors_of_every_layer() -> None:
    assert all(width % 2 == 0 for width in engine(tiny("llama")).fingerprint["widths"])  # 96 features: 3/2 of 64
    assert all(width % 4 == 0 for width in engine(tiny("gemma3")).fingerprint["widths"])  # heads 16 wide


@needs_compiler
def test_with_more_threads_each_ones_share_fills_whole_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    packing = Packing(model, usable())
    monkeypatch.setattr("aisp_ray.engine.cpu.packing._GRAIN", 64)  # as if the layers were large
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    some = packing.widths(model, 64)[:-1]
    assert some
    for width in some:
        for size in (64, 96, 32):
            share = -(-width * size // min(3, -(-width * size // 64)))
            assert share % VECTORS == 0


def test_candidates_grow_by_about_an_eighth() -> None:
    assert candidates(32) == [2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]
    assert candidates(2) == candidates(1) == []


def test_an_elementwise_function_has_the_same_bits_in_every_shape() -> None:
    x = torch.randn(3 * VECTORS, generator=torch.Generator().manual_seed(0))
    whole = torch.sigmoid(x)
    for count in range(1, VECTORS + 9):
        found = whole_vectors(torch.sigmoid, x[:count].view(1, count, 1))
        assert found.shape == (1, count, 1)
        assert torch.equal(found.flatten(), whole[:count])


def test_a_row_without_a_control_has_no_sums_of_the_row_before_it() -> None:
    steered = request(9, 2, 3, OpenLoop(12, MEAN, 1.0), iteration=1, want=WANT)
    free = request(9, 2, 12, seed=1, want=WANT)
    found = drive(engine(tiny("llama"), 2, 2), [steered, free])
    assert found[0].items[0].control_square > 0
    assert [(item.control_inner, item.control_square) for item in found[1].items] == [(0.0, 0.0)] * 2
