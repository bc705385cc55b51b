"""A quantised checkpoint through vLLM: checked at load without the original weights, steered like any other."""

from __future__ import annotations

import numpy as np
import pytest

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.plain import PlainEngine
from aisp_ray.engine.vllm.engine import VllmEngine
from aisp_ray.engine.vllm.setup import VllmSettings
from aisp_ray.engine.vllm.verify import verify
from tests.engine.tiny_models import drive, request
from tests.vllm.conftest import letters
from tests.vllm.small_models import CONTEXT, saved_in_8_bits
from tests.vllm.test_vllm_engine import MEAN


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """The model rounded by hand, the vLLM engine of the integers, and what it was checked against."""
    model, folder = saved_in_8_bits("llama", tmp_path_factory.mktemp("quantised"))
    engine = VllmEngine(VllmSettings(folder, "float32", CONTEXT, slots=8), letters)
    yield model, engine, verify(engine)
    engine.close()


def test_it_is_checked_against_vllm_itself(quantised):
    _, engine, how = quantised
    assert engine.config.quantization_config["quant_method"] == "compressed-tensors"
    assert how == "vLLM's own unperturbed decode and its logits of the perturbed pre-logits"


def test_its_first_prelogits_are_those_of_the_rounded_model(quantised):
    model, engine, _ = quantised
    asked = [request(length=length, n=2, tokens=1, want=frozenset({"prelogits"})) for length in (3, 12, 30)]
    found = [reply.items[0].prelogits[0] for reply in drive(engine, asked)]
    expected = [reply.items[0].prelogits[0] for reply in drive(PlainEngine(model, letters), asked)]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=0.02 * np.abs(one).max())  # a value in the middle may round apart


def test_its_noise_and_mean_are_those_of_any_model(quantised):
    model, engine, _ = quantised
    asked = [request(n=4, tokens=12, seed=3, iteration=1, control=OpenLoop(10, mean=MEAN, sigma=1.0))]
    first, again = drive(engine, asked)[0], drive(engine, asked)[0]
    assert [item.token_ids for item in first.items] == [item.token_ids for item in again.items]
    assert len({item.token_ids for item in first.items}) > 1
    plain = drive(PlainEngine(model, letters), asked)[0]
    for one, other in zip(plain.items, first.items, strict=True):
        assert len(one.token_ids) == len(other.token_ids) == 12  # sums over the same positions
        assert other.control_inner == pytest.approx(one.control_inner, rel=1e-4, abs=1e-4)
        assert other.control_square == pytest.approx(one.control_square, rel=1e-4)
