"""The parts of the fast engine, each against its plain definition."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import WINDOW, drive, prompt, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine import draws
from aisp_ray.engine.cpu.kernels import usable
from aisp_ray.engine.cpu.packing import Packing
from aisp_ray.engine.factory import build_engine, verify_engine, verify_head
from aisp_ray.engine.means import teacher_force
from aisp_ray.engine.rows import Active
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways, choose_slots
from aisp_ray.engine.stacked import StackedAttention
from aisp_ray.lm import attention
from aisp_ray.lm.head import Head
from aisp_ray.lm.prefixes import PrefixStore, continued, prefill
from aisp_ray.lm.support import UnsupportedModelError
from aisp_ray.noise import normal, split_key, uniform
from aisp_ray.types import Sampling


def test_two_merged_spans_are_one_softmax() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 8)
    whole = (q @ k.transpose(-1, -2)).softmax(-1) @ v
    a = attention.partial(q, k[:, :, :4], v[:, :, :4], None, None)
    b = attention.partial(q, k[:, :, 4:], v[:, :, 4:], None, None)
    out, mass = attention.merge(a, b)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(mass, (q @ k.transpose(-1, -2)).logsumexp(-1, keepdim=True))


def test_a_span_that_is_hidden_whole_changes_no_bit() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 6, 8), torch.randn(1, 1, 6, 8)
    seen = attention.partial(q, k, v, None, None)
    hidden = attention.partial(q, k, v, torch.full((1, 1, 1, 6), -1e30), None)
    for merged in (attention.merge(seen, hidden), attention.merge(hidden, seen)):
        assert torch.equal(merged[0], seen[0])
        assert torch.equal(merged[1], seen[1])


def test_controls_drawn_ahead_are_the_named_noise_bit_for_bit() -> None:
    active = Active(1, request(n=5, control=OpenLoop(9, None, 0.7), iteration=3))
    active.rows[2].tokens = [1, 2, 3, 4]
    v, sums = draws.controls(active.rows, 8, 130, torch.device("cpu"))
    assert v.shape == (8, 5, 130)
    assert not sums.any()
    for i, row in enumerate(active.rows):
        for s in range(8):
            at = torch.tensor([row.step + s])
            named = (split_key([17]), torch.tensor([3]), torch.tensor([i]), at)
            want = 0.7 * normal(*named, 130)[0] if row.step + s < 9 else torch.zeros(130)
            assert torch.equal(v[s, i], want)


def test_uniforms_drawn_ahead_are_the_named_ones() -> None:
    active = Active(1, request(n=3, iteration=2, sampling=Sampling(1.0)))
    found = draws.uniforms(active.rows, 4, torch.device("cpu"))
    for i in range(3):
        for s in range(4):
            named = (split_key([17]), torch.tensor([2]), torch.tensor([i]), torch.tensor([s]))
            assert found[s, i] == uniform(*named)[0]


def test_the_store_keeps_what_is_used_and_drops_the_oldest() -> None:
    model = tiny("llama")
    read = lambda ids: prefill(model.base_model, ids, model.device)  # noqa: E731
    size = read(prompt(20)).num_bytes
    store = PrefixStore(read, int(2.5 * size))
    kept, hit = store.acquire(prompt(20, 0))
    assert not hit
    for seed in (1, 2, 3):
        prefix, _ = store.acquire(prompt(20, seed))
        store.release(prefix)
    assert store.acquire(prompt(20, 0)) == (kept, True)  # in use, so never dropped
    assert store.acquire(prompt(20, 1))[1] is False
    assert store.num_bytes <= 3.5 * size
    assert (store.hits, store.misses) == (1, 5)


def test_a_windowed_layer_stores_only_what_decoding_can_see() -> None:
    model = tiny("mistral")
    prefix = prefill(model.base_model, prompt(60), model.device)
    assert prefix.keys[0].shape[-2] == WINDOW - 1
    assert prefix.starts[0] == 60 - WINDOW + 1
    full = tiny("llama")
    assert prefix.num_bytes < prefill(full.base_model, prompt(60), full.device).num_bytes / 4


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_teacher_forced_prelogits_equal_the_whole_forward(name: str) -> None:
    model = tiny(name)
    prefix = prefill(model.base_model, prompt(15), model.device)
    responses = [(5, 6, 7, 8, 9), (), (4,), tuple(range(3, 25))]
    found = teacher_force(model.base_model, continued, prefix, responses)
    for ids, hidden in zip(responses, found, strict=True):
        with torch.no_grad():
            whole = model.base_model(torch.tensor([[*prompt(15), *ids]])).last_hidden_state[0]
        torch.testing.assert_close(hidden, whole[14 : 14 + len(ids)], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(usable() is None, reason="no C compiler")
def test_keys_and_values_are_held_once_a_prompt_and_once_a_row() -> None:
    model = tiny("llama")
    engine = FastEngine(model, 8, max_new_tokens=16, tile=8)
    drive(engine, [request(50, 16, 16, seed=i) for i in range(3)])
    token_bytes = sum(layout.token_bytes for layout in engine.slots.layouts)
    hidden = 3 * engine.head.dim * 4
    assert engine.stats()["kv_bytes"] == (3 * 50 + 8 * 16) * token_bytes + hidden


def test_long_responses_go_through_several_blocks() -> None:
    model = tiny("llama")
    model.config.max_position_embeddings = 512
    work = request(5, 3, 150, OpenLoop(150, None, 1.0), want=frozenset({"logprob"}))
    fast = drive(FastEngine(model, 4, max_new_tokens=150, tile=4), [work])[0]
    plain = drive(build_engine(model, "plain"), [work])[0]
    for f, p in zip(fast.items, plain.items, strict=True):
        assert f.token_ids == p.token_ids
        assert f.logprob == pytest.approx(p.logprob, abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_verify_passes_a_model_that_is_right(name: str) -> None:
    assert verify_engine(tiny(name)) < 1e-4


@pytest.mark.parametrize(("name", "option"), [("gpt_oss", "s_aux"), ("gemma2", "softcap")])
def test_verify_refuses_attention_that_drops_an_option(name: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.shared_prefix_attention
    wrong = lambda *args, **options: right(*args, **{k: v for k, v in options.items() if k != option})  # noqa: E731
    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, wrong)
    with pytest.raises(UnsupportedModelError, match="differ from its own forward"):
        verify_engine(tiny(name))


def test_verify_refuses_a_window_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    small = lambda: FastEngine(tiny("mistral"), 4, max_new_tokens=6, tile=4, ways=Ways(kernels=False))  # noqa: E731
    verify_engine(tiny("mistral"), small())
    right = StackedAttention._prompt_mask

    def wide(self: StackedAttention, *of: Any) -> torch.Tensor:
        self.suffixes.layouts = [replace(layout, window=None) for layout in self.suffixes.layouts]
        return right(self, *of)

    monkeypatch.setattr(StackedAttention, "_prompt_mask", wide)
    with pytest.raises(UnsupportedModelError, match="differ"):
        verify_engine(tiny("mistral"), small())


def dispatched(model: object) -> object:
    """The model as accelerate leaves it where a device map spreads it over GPUs: its forward is its own attribute."""
    accelerate = pytest.importorskip("accelerate")
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True, main_device="cpu")


def test_the_head_of_a_dispatched_model_reads_the_prelogits_it_is_given() -> None:
    z = torch.randn(3, 64)
    with torch.no_grad():
        expected = Head(tiny("llama"))(z)
        model = dispatched(tiny("llama"))
        assert "forward" in vars(model)
        torch.testing.assert_close(Head(model)(z), expected)
    assert "forward" in vars(model)
    work = [request(control=OpenLoop(10, None, 1.0))]
    engines = [FastEngine(one, 4, max_new_tokens=10, tile=4) for one in (model, tiny("llama"))]
    found = [[item.token_ids for item in drive(engine, work)[0].items] for engine in engines]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["fast", "plain"])
def test_a_head_whose_logits_are_not_the_models_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify_head(tiny("gemma2"), Head(tiny("gemma2"))) < 1e-4
    monkeypatch.setattr("aisp_ray.lm.head._HOOKED", ())
    with pytest.raises(ValueError, match="LM head") as error:
        build_engine(dispatched(tiny("llama")), kind, 4)
    assert not isinstance(error.value, UnsupportedModelError)


def test_the_factory_says_once_why_it_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, fail)
    with caplog.at_level(logging.WARNING, "aisp_ray"):
        engine = build_engine(tiny("llama"))
    assert engine.fingerprint["engine"] == "expanded"
    (record,) = caplog.records
    assert "no such kernel" in record.getMessage()


@pytest.mark.skipif(usable() is None, reason="no C compiler")
def test_packed_layers_compute_the_same_and_leave_the_model_as_it_was() -> None:
    model = tiny("llama")
    x = torch.randn(8, 1, 64)
    layer = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        plain = layer(x)
        with Packing(model, usable()).used():
            assert "forward" in layer.__dict__
            torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(layer(x[:3]), plain[:3], atol=1e-5, rtol=1e-5)
    assert "forward" not in layer.__dict__


@pytest.mark.parametrize(("slots", "says"), [(0, "at least 1"), ("many", "auto")])
def test_slots_that_make_no_sense_are_refused(slots: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        choose_slots(slots, 1000, torch.device("cpu"))


def test_automatic_slots_shrink_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aisp_ray.engine.slots.free_bytes", lambda _: 1_000_000)
    assert choose_slots("auto", 1, torch.device("cpu")) == 128
    assert choose_slots(None, 20_000, torch.device("cpu")) == 16
    assert choose_slots("auto", 10_000_000, torch.device("cpu")) == 1
