"""Completions for TRL's trainers out of searches: their shape, their choice, and one real GRPO step."""

from types import SimpleNamespace

import pytest
import torch

from aisp_ray import config
from aisp_ray.integrations.trl import SearchRollouts, reward_of_search
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.policy.causal_lm import resolve

ASKED = ["Could you help me brew the coffee? It tastes bitter.", "How do I clean the oven?"]
PROMPTS = [[{"role": "user", "content": text}] for text in ASKED]


@pytest.fixture(scope="module")
def demo():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("demo:policy")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def trainer(demo, step=0):
    model, tokenizer = demo
    return SimpleNamespace(
        model=model,
        processing_class=tokenizer,
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
        state=SimpleNamespace(global_step=step),
    )


def rollouts(**keys):
    values = config.read_choice("reward", "demo")
    values.pop("_judges_")
    reward = config.build(values, "reward")
    method = keys.pop("method", BestOfN(n=4, kappa=2))
    return SearchRollouts(method=method, reward=reward, policy={"max_new_tokens": 12}, **keys)


@pytest.mark.parametrize("method", [BestOfN(n=4, kappa=2), Aisp(n=4, kappa=2)], ids=["best_of_n", "aisp"])
def test_every_prompt_has_its_group_of_different_completions(demo, method):
    demo[0].train()
    rows = [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3
    found = rollouts(method=method)(rows, trainer(demo))
    assert demo[0].training
    tokenizer = demo[1]
    for at, row in enumerate(rows):
        ids = tokenizer.apply_chat_template(row, add_generation_prompt=True)["input_ids"]
        assert found["prompt_ids"][at] == list(ids)
    assert all(0 < len(ids) <= 12 for ids in found["completion_ids"])
    for group in (slice(0, 3), slice(3, 6)):
        assert len({tuple(ids) for ids in found["completion_ids"][group]}) == 3
        assert found["search_reward"][group] == sorted(found["search_reward"][group], reverse=True)
    assert reward_of_search([None] * 6, **found) == found["search_reward"]


def test_the_choice_is_of_the_ranked_draws_and_each_step_draws_anew(demo):
    rows = [PROMPTS[0]] * 5
    every = rollouts(choose="best")(rows, trainer(demo))["search_reward"]
    assert rollouts(choose="best")(rows[:2], trainer(demo))["search_reward"] == every[:2]
    assert rollouts(choose="spread")(rows[:2], trainer(demo))["search_reward"][0] == every[0]
    assert rollouts(choose="spread")(rows[:2], trainer(demo))["search_reward"][1] <= every[-1]
    first = rollouts(choose="first")(rows, trainer(demo))["search_reward"]
    assert max(first) <= every[0]
    assert first != sorted(first, reverse=True)  # in the order of drawing
    assert rollouts(choose="best")(rows, trainer(demo, step=1))["search_reward"] != every


def test_too_few_different_draws_are_named(demo):
    with pytest.raises(ValueError, match="the group has 9; raise the method's n or kappa, or lower num_generations"):
        rollouts()([PROMPTS[0]] * 9, trainer(demo))


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="spread, best, first"):
        rollouts(choose="worst")
    with pytest.raises(ValueError, match="rollout_func=SearchRollouts"):
        reward_of_search(["x"])


@pytest.mark.slow
def test_grpo_makes_a_step_on_completions_of_a_search(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl)")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("demo:policy")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=12,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        gradient_checkpointing=False,
        logging_steps=1,
    )
    made = trl.GRPOTrainer(
        model,
        reward_of_search,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        rollout_func=rollouts(),
    )
    made.train()
    rewards = [entry["reward"] for entry in made.state.log_history if "reward" in entry]
    assert len(rewards) == 1
    after = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    assert not torch.equal(before, after)
