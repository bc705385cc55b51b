"""How much noise of sigma 1 on the pre-logits changes the logits: measured at load, kept in the fingerprint."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.lm.head import Head
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.aisp_population import AispPopulation
from aisp_ray.policy.causal_lm import CausalLM, resolve
from aisp_ray.types import Prompt, Proposal

PROMPT = Prompt("x/y/00000000", 0, "x", "hello")


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


def test_a_sigma_of_the_logits_moves_them_by_as_much_in_every_model():
    policy = CausalLM(model="demo:policy", engine="plain", max_new_tokens=8).load("cpu")
    law = policy.request(PROMPT, Proposal(0, 2, OpenLoop(None, sigma=0.5, scale=None)), seed=0).proposal.control
    assert law.factor(3) * policy.engine.head.noise_scale() == pytest.approx(1, rel=5e-3)
    given = OpenLoop(None, sigma=0.5)
    assert policy.request(PROMPT, Proposal(0, 2, given), seed=0).proposal.control.scale == 1.0


def test_last_digits_of_the_measured_scale_change_no_law():
    laws = [OpenLoop(8, sigma=1.0, scale=None).scaled_for(scale) for scale in (2.3712, 2.3699, 2.37)]
    assert len(set(laws)) == 1
    assert laws[0].factor(5) == 1 / 2.37


@pytest.mark.parametrize("method", [Aisp, AispPopulation])
def test_a_method_hands_on_what_its_sigma_measures(method):
    for scale, words in ((1.0, {}), (1.0, {"sigma_scale": "prelogits"}), (None, {"sigma_scale": "logits"})):
        one = method(n=2, kappa=2, sigma=0.5, **words)
        assert one.ask(one.init(PROMPT, 0)).control.scale == scale
    with pytest.raises(ValueError, match="sigma_scale is 'logit'; it is one of prelogits, logits"):
        method(n=2, kappa=2, sigma=0.5, sigma_scale="logit")
