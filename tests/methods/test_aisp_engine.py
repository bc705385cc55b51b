"""AISP's proposals on the plain engine of a real (tiny, random) transformer."""

from __future__ import annotations

import pytest
import torch

from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.methods.aisp import Aisp
from aisp_ray.types import Prompt


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_zero_sigma_is_the_greedy_base_decode(model):
    from aisp_ray.engine.plain import PlainEngine

    ids = (5, 9, 33, 2)
    method = Aisp(n=3, kappa=1, sigma=0.0, adapt=False, horizon=12)
    proposal = method.ask(method.init(Prompt("x/y/00000000", 0, "x", "text"), 0))
    rollouts = PlainEngine(model).run(RolloutRequest(ids, 7, proposal, 12, StopRules()))
    expected = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
    )
    for item in rollouts.items:
        assert item.token_ids == tuple(expected[0, len(ids) :].tolist())
        assert item.control_inner == 0.0
