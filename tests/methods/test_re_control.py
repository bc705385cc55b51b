"""RE-Control decoded by the plain engine is the plain loop: body, gradient steps, head, argmax."""

from __future__ import annotations

import math

import pytest
import torch

from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.methods.re_control import ReControl
from aisp_ray.types import Prompt


def test_greedy_decoding_follows_the_value_function(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from aisp_ray.controls.value import ValueFunction
    from aisp_ray.engine.plain import PlainEngine

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.4, tie_word_embeddings=False,
    )  # fmt: skip
    model, value = LlamaForCausalLM(config).eval(), ValueFunction(8, 6)
    value.save(tmp_path / "v.safetensors", {})
    method = ReControl(value=str(tmp_path / "v.safetensors"), step_size=2.0, steps=3, horizon=5)
    proposal = method.ask(method.init(Prompt("x/y/00000000", 0, "x", "text"), 0))
    ids = [3, 17, 5]
    (row,) = PlainEngine(model).run(RolloutRequest(tuple(ids), 7, proposal, 8, StopRules())).items
    steered, base = [], []
    for step_size, found in ((2.0, steered), (0.0, base)):
        for t in range(8):
            z = model.model(torch.tensor([ids + found])).last_hidden_state[0, -1].detach()
            for _ in range(3 if t < 5 else 0):
                z.requires_grad_()
                z = (z + step_size * torch.autograd.grad(value(z), z)[0]).detach()
            found.append(int(model.lm_head(z).argmax()))
    assert list(row.token_ids) == steered
    assert steered != base, "the test needs a value function that matters"


def test_equal_greedy_decodes_are_refused():
    with pytest.raises(ValueError, match="would all be equal"):
        ReControl(value="v.safetensors", n=4)
    with pytest.raises(ValueError, match="train_value"):
        ReControl(value="")


def test_the_training_cost_is_shared_out_over_the_prompts(tmp_path):
    from toy_world import ToyPolicy, drive

    from aisp_ray.controls.value import ValueFunction

    cost = {"num_samples": 80, "num_generated_tokens": 4000, "num_reward_calls": 80, "num_backward_passes": 20}
    ValueFunction(3, 4).save(tmp_path / "v.safetensors", {"cost": cost})
    method = ReControl(value=str(tmp_path / "v.safetensors"), kappa=2, temperature=1.0, shared_by=40)
    _, history = drive(method, ToyPolicy(), lambda ids: 0.0)
    shares = {"training_samples": 2.0, "training_generated_tokens": 100.0}
    assert history[0][3] == {**shares, "training_reward_calls": 2.0, "training_backward_passes": 0.5}
    assert history[1][3] == {}
    _, history = drive(ReControl(value=str(tmp_path / "elsewhere.safetensors")), ToyPolicy(), lambda ids: 0.0)
    assert all(math.isnan(share) for share in history[0][3].values())
