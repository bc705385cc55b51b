"""How much noise of sigma 1 on the pre-logits changes the logits: measured at load, kept in the fingerprint."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from aisp_ray.lm.head import Head
from aisp_ray.policy.causal_lm import CausalLM, resolve


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(resolve("demo:policy"), dtype=torch.float32).eval()


def test_it_is_the_spread_of_the_heads_rows(model):
    weight = model.get_output_embeddings().weight.detach()
    expected = float((weight - weight.mean(0)).pow(2).sum(1).mean().sqrt())
    assert Head(model).noise_scale(draws=256) == pytest.approx(expected, rel=0.03)


def test_it_grows_with_the_head_and_ignores_what_all_logits_share(model):
    head = Head(model)
    before = head.noise_scale()
    with torch.no_grad():
        head.weight.mul_(3.0)
        assert head.noise_scale() == pytest.approx(3 * before, rel=1e-3)
        head.weight.add_(torch.ones(head.dim))
        assert head.noise_scale() == pytest.approx(3 * before, rel=1e-3)


@pytest.mark.parametrize("engine", ["fast", "expanded", "plain"])
def test_every_engine_tells_it(engine):
    policy = CausalLM(model="demo:policy", engine=engine).load("cpu")
    assert policy.engine.fingerprint["noise_scale"] == pytest.approx(policy.engine.head.noise_scale(), abs=1e-4)
