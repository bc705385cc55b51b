"""The assembled classifier against its plain form: an average of hidden states under a window, times a vector."""

import math
from pathlib import Path

import pytest
import torch
import transformers

import aisp_ray
from aisp_ray.lm.pooled_head import CONTEXT, GAIN, PooledHead, build_classifier, pool

HEADS = Path(aisp_ray.__file__).parent / "demo" / "heads"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=120,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


def head_of(window, layers=3):
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1))
    return PooledHead(weight, layers, window, mean=0.3, std=0.5, axis=7, axis_mean=0.1, rms=2.0)


def plain(model, head, ids):
    """The reward by the formula."""
    with torch.no_grad():
        states = model(ids[None], output_hidden_states=True).hidden_states[head.layers][0]
    eps = model.config.rms_norm_eps
    last = states[-1].clone()
    average = (pool(states, head.window, eps) @ head.weight - head.mean) / head.std
    last[head.axis] += GAIN * head.rms * average - head.axis_mean
    return float(last[head.axis] / (last.pow(2).mean() + eps).sqrt() / GAIN)


@pytest.mark.parametrize("window", [5.0, 20.0, 60.0])
@pytest.mark.parametrize("length", [1, 2, 40, 700])
def test_the_attention_layer_is_the_window(model, window, length):
    head = head_of(window)
    classifier = build_classifier(model, head)
    ids = torch.randint(1, 120, (length,), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        hidden = classifier.model(ids[None]).last_hidden_state[0, -1]
        assert float(classifier.score(hidden)) == pytest.approx(plain(model, head, ids), abs=5e-3)


def test_the_window_does_not_rise_again_within_the_context(model):
    weights = build_classifier(model, head_of(20.0)).state_dict()
    query = weights["model.layers.3.self_attn.q_proj.bias"][:32]
    (pair,) = query.nonzero().flatten().tolist()
    theta = 100000.0 ** (-2 * pair / 32)
    assert theta * CONTEXT <= math.pi


def test_a_head_of_another_body_is_refused(model):
    with pytest.raises(ValueError, match="the head is for 9 layers of width 64; this model has 4"):
        build_classifier(model, head_of(20.0, layers=9))


def test_a_head_is_read_as_it_was_written(tmp_path):
    head = head_of(20.0)
    head.save(tmp_path / "head.safetensors", {"accuracy": 0.6})
    again, facts = PooledHead.load(tmp_path / "head.safetensors")
    torch.testing.assert_close(again.weight, head.weight)
    assert (again.layers, again.window, again.axis, facts) == (3, 20.0, 7, {"accuracy": 0.6})


@pytest.mark.parametrize("name", ["reward", "judge"])
def test_the_heads_that_come_along_say_what_they_are(name):
    path = HEADS / f"{name}.safetensors"
    head, facts = PooledHead.load(path)
    assert path.stat().st_size < 10_000
    assert head.weight.shape == (576,)
    assert bool(head.weight.isfinite().all())
    assert facts["both"]["accuracy"] - facts["both"]["half_interval"] > 0.5
    assert facts["data"]
    assert facts["limits"]


def test_the_reward_and_its_judge_were_made_apart():
    reward, judge = (PooledHead.load(HEADS / f"{name}.safetensors")[0] for name in ("reward", "judge"))
    assert reward.layers != judge.layers
    cosine = torch.nn.functional.cosine_similarity(reward.weight, judge.weight, dim=0)
    assert abs(float(cosine)) < 0.9
