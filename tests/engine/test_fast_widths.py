"""Steps on fewer slots than a tile has: used only where the rows keep every bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import bits, drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine import prefixparts, widths
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.fast import FastEngine
from aisp_ray.engine.widths import candidates, equal_widths, unit
from aisp_ray.lm.attention import VECTORS, whole_vectors
from aisp_ray.lm.prefixes import prefill

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
    for one in whole._tiles:
        one.widths = (tile,)
        if one.cache.direct is None:
            one.cache.prefixes._widths = lambda _: (prefixparts.LANE,)
    return whole


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", torch.float32),
        ("llama", torch.bfloat16),
        ("gemma2", torch.float32),  # soft-caps
        ("mistral", torch.float32),  # windows
        ("gpt_oss", torch.float32),  # sinks
        ("lfm2", torch.float32),  # states
    ],
)
@pytest.mark.usefixtures("products")
def test_steps_on_fewer_slots_change_no_bit(name: str, dtype: torch.dtype) -> None:
    model = tiny(name, dtype)
    fitted, whole = engine(model), always_whole(model)
    found, expected = drive(fitted, work()), drive(whole, work())
    assert [bits(one) for one in found] == [bits(one) for one in expected]
    assert fitted.stats()["useful_row_steps"] == whole.stats()["useful_row_steps"]
    if len(fitted.fingerprint["widths"]) > 1:
        assert fitted.stats()["row_steps"] < whole.stats()["row_steps"]


def test_a_small_llama_in_float32_is_stepped_on_fewer_slots() -> None:
    fitted = engine(tiny("llama"))
    if not len(fitted._body.packing):
        pytest.skip("this build of PyTorch does not pack")
    assert len(fitted.fingerprint["widths"]) > 4
    drive(fitted, work())
    stats = fitted.stats()
    assert stats["useful_row_steps"] / stats["row_steps"] > 0.8


def with_layer(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The model with something done to what its first MLP gives."""
    model.base_model.layers[0].mlp.register_forward_hook(lambda _, __, out: change(out))
    return model


def test_numbers_of_slots_whose_rows_differ_are_refused() -> None:
    def rounded_otherwise_for_few(out: torch.Tensor) -> torch.Tensor:
        return out * (1 + 1e-6) if 1 < out.shape[0] < 9 else out

    plain, odd = engine(tiny("llama")), engine(with_layer(tiny("llama"), rounded_otherwise_for_few))
    assert odd.fingerprint["widths"] == tuple(width for width in plain.fingerprint["widths"] if width > 8)
    assert odd._body.packing.widths == frozenset(odd.fingerprint["widths"])


def test_one_row_that_differs_in_one_slot_is_enough_to_refuse() -> None:
    def last_row(out: torch.Tensor) -> torch.Tensor:
        if out.shape[0] == 16:
            out = out.clone()
            out[15, 0, 3] = torch.nextafter(out[15, 0, 3], out.new_tensor(9.0))
        return out

    plain, odd = engine(tiny("llama")), engine(with_layer(tiny("llama"), last_row))
    assert odd.fingerprint["widths"] == tuple(width for width in plain.fingerprint["widths"] if width != 16)


def test_a_model_that_fails_on_fewer_rows_is_stepped_whole() -> None:
    def only_whole(out: torch.Tensor) -> torch.Tensor:
        if 1 < out.shape[0] < 32:
            raise RuntimeError("a shape that this kernel does not take")
        return out

    odd = engine(with_layer(tiny("llama"), only_whole))
    assert odd.fingerprint["widths"] == (32,)
    assert tokens(drive(odd, work())) == tokens(drive(engine(tiny("llama")), work()))


def tokens(found: list) -> list:
    return [[item.token_ids for item in rollouts.items] for rollouts in found]


def test_a_mixture_of_experts_is_stepped_whole() -> None:
    assert engine(tiny("qwen3_moe")).fingerprint["widths"] == (32,)


def test_captured_shapes_stay_whole() -> None:
    stacked = FastEngine(tiny("llama"), 16, max_new_tokens=12, tile=16, stack=32)
    assert stacked.fingerprint["widths"] == (16,)
    drive(stacked, work()[:2])
    assert stacked.stats()["row_steps"] % 16 == 0


def test_the_trial_leaves_the_tile_as_if_new() -> None:
    fresh = engine(tiny("lfm2"))
    (tile,) = fresh._tiles
    assert equal_widths(tile, fresh._probe) == fresh.fingerprint["widths"]
    held = (*tile.cache.buffers(), *tile.cache.states(), tile.cache.step, tile.token, tile.base_length)
    assert not any(tensor.any() for tensor in held)
    assert tile.width == 32


def test_numbers_of_slots_fill_whole_vectors_of_every_layer() -> None:
    assert unit(tiny("llama")) == 2  # 96 features: two rows are three times 64
    assert unit(tiny("gemma3")) == 4  # heads 16 wide
    assert candidates(32, 4) == [4, 8, 12, 16, 20, 24, 28]
    assert candidates(2) == candidates(1) == []


def test_an_elementwise_function_has_the_same_bits_in_every_shape() -> None:
    x = torch.randn(3 * VECTORS, generator=torch.Generator().manual_seed(0))
    whole = torch.sigmoid(x)
    for count in range(1, VECTORS + 9):
        found = whole_vectors(torch.sigmoid, x[:count].view(1, count, 1))
        assert found.shape == (1, count, 1)
        assert torch.equal(found.flatten(), whole[:count])


@pytest.mark.usefixtures("products")
def test_lanes_are_narrow_where_the_bits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    prefix = prefill(model.base_model, request(21).prompt_ids, model.device)
    keys, values = prefix.keys[0], prefix.values[0]
    plain = prefixparts.equal_lanes(keys, values, 2, None, False)
    right = prefixparts._product

    def odd(query: torch.Tensor, *rest: Any) -> tuple:
        out, mass = right(query, *rest)
        return (out * (1 + 1e-6), mass) if query.shape[2] in (8, 12) else (out, mass)

    monkeypatch.setattr(prefixparts, "_product", odd)
    assert prefixparts.equal_lanes(keys, values, 2, None, False) == [width for width in plain if width not in (4, 6)]
    found = drive(engine(model), work())
    whole = drive(always_whole(model), work())
    assert [bits(one) for one in found] == [bits(one) for one in whole]


def test_a_row_without_a_control_has_no_sums_of_the_row_before_it() -> None:
    steered = request(9, 2, 3, OpenLoop(12, MEAN, 1.0), iteration=1, want=WANT)
    free = request(9, 2, 12, seed=1, want=WANT)
    found = drive(engine(tiny("llama"), 2, 2), [steered, free])
    assert found[0].items[0].control_square > 0
    assert [(item.control_inner, item.control_square) for item in found[1].items] == [(0.0, 0.0)] * 2


def long_work() -> list:
    """Rows of up to 40 tokens, each with its own end."""
    stop = StopRules(tuple(range(3, 6)))
    return [request(5 + 6 * i, 6, 40, OpenLoop(40, None, 1.0), seed=i, stop=stop, want=WANT) for i in range(3)]


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt_oss", "lfm2"])
def test_reading_only_the_keys_that_rows_have_reached_changes_no_bit(name: str) -> None:
    model = tiny(name)
    near = FastEngine(model, 20, max_new_tokens=40, tile=20, kernels=False)
    far = FastEngine(model, 20, max_new_tokens=40, tile=20, kernels=False)
    for tile in far._tiles:
        tile.cache.reaches = ()
    far._reaches = ()
    assert [bits(one) for one in drive(near, long_work())] == [bits(one) for one in drive(far, long_work())]


def test_a_step_reads_no_more_keys_than_its_rows_need() -> None:
    engine = FastEngine(tiny("llama"), 6, max_new_tokens=40, tile=6, kernels=False)
    (tile,) = engine._tiles
    if tile.cache.reaches != (16, 32):
        pytest.skip("products of fewer keys round otherwise on this machine")
    read, real = [], tile.cache.begin_step

    def noted(num_blocks: int, width: int, reach: int | None = None) -> None:
        read.append(reach)
        real(num_blocks, width, reach)

    tile.cache.begin_step = noted  # type: ignore[method-assign]
    drive(engine, [request(5, 6, 40, OpenLoop(40, None, 1.0))])
    assert read == [16] * 16 + [32] * 16 + [None] * 7


def test_a_number_of_keys_whose_bits_differ_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = widths.partial

    def odd(*args: Any) -> tuple:
        out, mass = right(*args)
        return (out, mass + 1e-5) if args[-1] == 16 else (out, mass)

    fresh = FastEngine(tiny("llama"), 6, max_new_tokens=40, tile=6, kernels=False)
    plain = fresh._reaches
    monkeypatch.setattr(widths, "partial", odd)
    found = widths.equal_reaches(fresh._tiles[0], fresh._probe, (6,))
    assert found == tuple(reach for reach in plain if reach != 16)


def test_half_types_read_whole_blocks() -> None:
    assert FastEngine(tiny("llama", torch.bfloat16), 6, max_new_tokens=40, tile=6)._reaches == ()
