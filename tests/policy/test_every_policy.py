"""Each YAML of conf/policy on a random small checkpoint of its architecture, tokenizer class and chat format."""

import asyncio

import pytest
from policy_helpers import PROMPTS, SAMPLED, STEERED, load, rollouts, settings
from tiny_checkpoints import MAKERS, make_checkpoint

from aisp_ray import config
from aisp_ray.cluster.local import LocalPolicy, LocalReward
from aisp_ray.driver import search
from aisp_ray.ledger import Task
from aisp_ray.methods.aisp import Aisp
from aisp_ray.rewards.callable import CallableReward

POLICIES = sorted(set(config.choices("policy")) - {"demo", "openai"})  # openai: test_openai.py


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}

    def checkpoint(name):
        if name not in made:
            made[name] = make_checkpoint(name, folder)
        return made[name]

    return checkpoint


def test_every_yaml_has_a_stand_in():
    assert set(MAKERS) == set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_the_fast_engine_runs_it_and_gives_the_plain_engines_tokens(name, checkpoints):
    fast, plain = (load(settings(name, checkpoints(name), engine=engine)) for engine in ("fast", "plain"))
    assert type(fast.engine).__name__ == "FastEngine"  # not the fallback
    for proposal in (STEERED, SAMPLED):
        for prompt in PROMPTS:
            ours, reference = rollouts(fast, prompt, proposal), rollouts(plain, prompt, proposal)
            assert [item.token_ids for item in ours.items] == [item.token_ids for item in reference.items]
            assert [item.text for item in ours.items] == [item.text for item in reference.items]
            assert {item.finish_reason for item in ours.items} <= {"stop", "stop_string", "length"}


@pytest.mark.parametrize("name", POLICIES)
def test_a_prompt_has_one_beginning_at_most_and_ends_where_the_reply_starts(name, checkpoints):
    policy = load(settings(name, checkpoints(name)))
    tokenizer = policy.tokenizer
    for prompt in PROMPTS:
        ids, text = policy.renderer.ids(prompt), policy.describe(prompt)
        decoded = tokenizer.decode(ids)
        if tokenizer.bos_token == "<|im_start|>":  # SmolLM2's opens every turn
            assert ids.count(tokenizer.bos_token_id) == text.count("<|im_start|>")
        elif tokenizer.bos_token:
            assert ids.count(tokenizer.bos_token_id) <= 1
            assert ids.count(tokenizer.bos_token_id) == text.count(tokenizer.bos_token)
            assert tokenizer.bos_token_id not in ids[1:]
        assert decoded.replace(" ", "").endswith(ENDS[name].replace(" ", ""))
        assert text.endswith(ENDS[name])
        assert ids[-1] != tokenizer.eos_token_id


ENDS = {
    "llama3_8b": "Assistant:",
    "llama3_8b_instruct": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "vicuna_7b": "Assistant:",
    "gemma3_4b": "<start_of_turn>model\n",
    "lfm2_5_1_2b": "<|im_start|>assistant\n",
    "phi_4": "<|im_start|>assistant<|im_sep|>",
    "qwen3_8b": "<think>\n\n</think>\n\n",
    "smollm2": "<|im_start|>assistant\n",
    "hf": "<|start_header_id|>assistant<|end_header_id|>\n\n",
}
OPENS = {  # with the beginning-of-text token where the checkpoint has one
    "llama3_8b": "<|begin_of_text|>User: ",
    "llama3_8b_instruct": "<|begin_of_text|><|start_header_id|>user",
    "vicuna_7b": "<s>Human: ",
    "gemma3_4b": "<bos><start_of_turn>user\n",
    "lfm2_5_1_2b": "<|startoftext|><|im_start|>user\n",
    "phi_4": "<|im_start|>user<|im_sep|>",
    "qwen3_8b": "<|im_start|>user\n",
    "smollm2": "<|im_start|>user\n",
    "hf": "<|begin_of_text|><|start_header_id|>user",
}
STOPS = {
    "llama3_8b": {"<|end_of_text|>", "<|eot_id|>"},
    "llama3_8b_instruct": {"<|end_of_text|>", "<|eot_id|>"},
    "vicuna_7b": {"</s>"},
    "gemma3_4b": {"<eos>", "<end_of_turn>"},
    "lfm2_5_1_2b": {"<|im_end|>"},
    "phi_4": {"<|im_end|>"},
    "qwen3_8b": {"<|im_end|>", "<|endoftext|>"},
    "smollm2": {"<|im_end|>"},
    "hf": {"<|end_of_text|>", "<|eot_id|>"},
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_shown_text_opens_and_a_response_ends_as_the_checkpoint_says(name, checkpoints):
    policy = load(settings(name, checkpoints(name)))
    assert policy.describe(PROMPTS[0]).startswith(OPENS[name])
    stops = policy.request(PROMPTS[0], STEERED, 0).stop
    assert {policy.tokenizer.convert_ids_to_tokens(token) for token in stops.token_ids} == STOPS[name]


@pytest.mark.parametrize("name", ["gemma3_4b", "lfm2_5_1_2b"])
def test_a_search_runs_on_it_end_to_end(name, checkpoints):
    policy = LocalPolicy(settings(name, checkpoints(name)))
    reward = LocalReward(CallableReward(target="policy_helpers:length_reward"))
    task = Task(PROMPTS[1], "aisp", Aisp(n=4, kappa=2, horizon=6))
    progress = asyncio.run(search(task, policy, reward, seed=0))
    assert progress.trace.num_samples == 8
    assert progress.state.best.reward == max(progress.trace.reward_max)
