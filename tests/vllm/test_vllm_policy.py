"""The embedded demo policy under `engine=vllm`: the responses of the fast engine, and the checks at load."""

from dataclasses import replace

import pytest
import torch

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.vllm import verify as checks
from aisp_ray.engine.vllm.load import build_vllm_engine
from aisp_ray.engine.vllm.seam import Seam
from aisp_ray.engine.vllm.setup import VllmSettings
from aisp_ray.policy.causal_lm import CausalLM
from aisp_ray.types import Message, Prompt, Proposal, Sampling
from tests.vllm.small_models import CONTEXT, saved

SPEC = CausalLM(model="demo:policy", dtype="float32", engine="vllm", max_new_tokens=40, slots=16, stop_strings=("!",))
PROMPTS = [
    Prompt(f"demo/test/{k:08d}", k, "demo", text, (Message("user", text),))
    for k, text in enumerate(("my order is late", "the lamp does not work " * 20, "hello"))
]
PROPOSALS = [
    Proposal(0, 4, OpenLoop(horizon=32, sigma=0.5)),
    Proposal(1, 4, sampling=Sampling(temperature=1.0, top_p=0.9), want=frozenset({"logprob"})),
]


def rollouts(policy):
    """Everything at once, by (prompt, proposal)."""
    tickets = {}
    for prompt in PROMPTS:
        for proposal in PROPOSALS:
            ticket = policy.engine.submit(policy.request(prompt, proposal, 0))
            tickets[ticket] = (prompt.ordinal, proposal.iteration)
    found = {}
    while policy.engine.num_pending:
        for ticket, result in policy.engine.step():
            found[tickets[ticket]] = policy.finish(result)
    return found


@pytest.fixture(scope="module")
def policy():
    loaded = SPEC.load("cpu")
    yield loaded
    loaded.engine.close()


def test_responses_are_the_fast_engines(policy):
    expected, found = rollouts(replace(SPEC, engine="fast").load("cpu")), rollouts(policy)
    assert expected.keys() == found.keys()
    for key, one in expected.items():
        for x, y in zip(one.items, found[key].items, strict=True):
            assert (x.text, x.token_ids, x.finish_reason) == (y.text, y.token_ids, y.finish_reason)


def test_prompts_are_read_once(policy):
    """A long prompt's particles find its blocks, those of its second request too."""
    before = policy.engine.stats()
    first, second = (rollouts(policy)[1, k] for k in (0, 1))
    after = policy.engine.stats()
    assert second.prefix_hit
    assert first.num_prompt_tokens > 128
    assert after["cached_tokens"] > before["cached_tokens"]
    assert 0 < after["prefix_hit_rate"] < 1


def test_a_prompt_that_is_too_long_names_the_key(policy):
    text = "late order " * 3000
    with pytest.raises(ValueError, match="at most 2008 fit"):
        policy.request(Prompt("x", 0, "x", text, (Message("user", text),)), PROPOSALS[0], 0)


@pytest.mark.parametrize("weights", ["loaded again", "too large"])
def test_a_seam_that_drops_the_control_is_noticed(tmp_path, monkeypatch, weights):
    _, folder = saved("llama", tmp_path)
    if weights == "too large":
        monkeypatch.setattr(checks, "_MOST_WEIGHTS", 1)
    settings = VllmSettings(folder, "float32", CONTEXT, slots=4)
    build_vllm_engine(settings).close()
    monkeypatch.setattr(Seam, "_added", lambda *_: None)
    with pytest.raises(ValueError, match=r"perturbed pre-logits.*policy\.engine=fast"):
        build_vllm_engine(settings)


def test_a_model_that_vllm_reads_otherwise_is_noticed(tmp_path, monkeypatch):
    model, folder = saved("mistral", tmp_path)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.1)
    monkeypatch.setattr(checks, "_load_again", lambda engine: model)
    with pytest.raises(ValueError, match="differ from its own forward"):
        build_vllm_engine(VllmSettings(folder, "float32", CONTEXT, slots=4))


def test_a_lack_of_memory_is_one_that_another_try_may_mend(tmp_path):
    _, folder = saved("llama", tmp_path)
    with pytest.raises(MemoryError):
        build_vllm_engine(VllmSettings(folder, "float32", CONTEXT, slots=4, cache_bytes=1 << 50))
