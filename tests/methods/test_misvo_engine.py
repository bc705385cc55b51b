"""MISVO's products through the head of a real (tiny, random) transformer with capped logits."""

from __future__ import annotations

import pytest
import torch

from aisp_ray.controls.score_log import _Responses, fisher_product
from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.methods.misvo import Misvo
from aisp_ray.types import Prompt, Scores


@pytest.fixture(scope="module")
def engine():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from aisp_ray.engine.plain import PlainEngine

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=24, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, initializer_range=0.5, final_logit_softcapping=2.0,
    )  # fmt: skip
    return PlainEngine(Gemma2ForCausalLM(config).eval())


def test_a_capped_head_has_the_fisher_matrix_of_its_own_jacobian(engine):
    z = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(1))
    u = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    reference = _Responses(z, torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2))
    found = fisher_product(engine.head, u, reference, 1.0)
    for t in range(2):
        F = torch.zeros(8, 8)
        for s in range(3):
            J = torch.autograd.functional.jacobian(engine.head, z[s, t][None]).reshape(24, 8)
            p = engine.head(z[s, t][None])[0].softmax(-1)
            F += J.T @ (torch.diag(p) - torch.outer(p, p)) @ J / 3
        torch.testing.assert_close(found[t], F.detach() @ u[t], atol=1e-5, rtol=1e-4)


def test_the_engine_decodes_under_the_mean_and_it_moves(engine):
    method = Misvo(n=4, kappa=3, step_size=2.0, strength=0.1, horizon=5)
    state, norms = method.init(Prompt("x/y/00000000", 0, "x", "text"), 0), []
    while not state.done:
        rollouts = engine.run(RolloutRequest((5, 9, 3), 7, method.ask(state), 6, StopRules()))
        norms.append(rollouts.control_norm)
        rewards = tuple(float(sum(item.token_ids)) for item in rollouts.items)
        state, _ = method.tell(state, rollouts, Scores(rewards))
    assert norms[0] == 0.0
    assert norms[1] > 0
    assert norms[2] != norms[1]
