"""What every preset in conf/method promises, whoever wrote it."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from toy_world import ToyPolicy, drive, prompt

from aisp_ray import config
from aisp_ray.methods.base import planned_cost
from aisp_ray.pipeline.codec import decode, encode
from aisp_ray.types import Scores

SMALL = {
    "n": 4,
    "kappa": 3,
    "k": 3,
    "max_new_tokens": 4,
    "horizon": 4,
    "first_rounds": 1,
    "base_rounds": 0,
    "block": 2,
    "beams": 2,
}
PRESETS = list(config.choices("method"))


def small(name):
    """The preset at a size the toy can afford, all other keys as they are."""
    values = config.read_choice("method", name)
    if values["_target_"].endswith("ReControl"):
        values.setdefault("value", "value.safetensors")
    method = config.build(values, f"method.{name}")
    fields = {field.name for field in dataclasses.fields(method)}
    changes = {key: value for key, value in SMALL.items() if key in fields}
    if getattr(method, "base_rounds", 0):
        changes["base_rounds"] = 1
    if getattr(method, "temperature", None) == 0 and "value" in fields:
        changes["n"] = changes["kappa"] = 1
    return dataclasses.replace(method, **changes)


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids)))


@pytest.mark.parametrize("name", PRESETS)
def test_a_search_keeps_its_budget_and_returns_a_response_that_was_seen(name):
    method = small(name)
    state, history = drive(method, ToyPolicy(), reward)
    drawn = [item for _, rollouts, _, _ in history for item in rollouts.items]
    assert state.done
    assert len(drawn) <= method.num_samples
    assert len(history) <= method.num_iterations
    assert sum(item.num_generated_tokens for item in drawn) <= planned_cost(method, 4)["generated_tokens"]
    assert state.best.token_ids in {item.token_ids for item in drawn}
    assert state.best.reward == reward(state.best.token_ids)
    assert all(isinstance(value, float) for *_, info in history for value in info.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_search_is_pure_and_goes_on_from_a_snapshot_as_if_nothing_had_happened(name):
    method, policy = small(name), ToyPolicy()
    whole, _ = drive(method, policy, reward)
    state = method.init(prompt(), 0)
    while not state.done:
        state = decode(json.loads(json.dumps(encode(state))))
        proposal = method.ask(state)
        assert method.ask(state) == proposal
        rollouts = policy.rollout(prompt(), proposal, 0)
        scores = Scores(tuple(reward(item.token_ids) for item in rollouts.items))
        one, two = method.tell(state, rollouts, scores), method.tell(state, rollouts, scores)
        assert repr(one) == repr(two)
        state = one[0]
    assert repr(state) == repr(whole)


@pytest.mark.parametrize("name", PRESETS)
def test_failed_responses_never_win_and_never_end_a_search_with_an_exception(name):
    method, policy = small(name), ToyPolicy()
    for failing in (lambda k, i: k == 0, lambda k, i: i == 0, lambda k, i: True):
        state = method.init(prompt(), 0)
        while not state.done:
            rollouts = policy.rollout(prompt(), method.ask(state), 0)
            rewards = tuple(
                math.nan if failing(state.iteration, i) else reward(item.token_ids)
                for i, item in enumerate(rollouts.items)
            )
            state, _ = method.tell(state, rollouts, Scores(rewards))
        assert state.best is None or math.isfinite(state.best.reward)
    assert state.best is None


@pytest.mark.parametrize("name", PRESETS)
def test_seeds_have_their_own_draws(name):
    method, policy = small(name), ToyPolicy(ends=False)
    runs = [drive(method, policy, lambda ids: reward(ids) / 20, seed=seed)[1] for seed in range(2)]
    texts = {tuple(item.text for _, rollouts, _, _ in run for item in rollouts.items) for run in runs}
    assert (len(texts) == 2) == (name not in ("args", "args_paper", "re_control_paper")), "greedy ones draw nothing"
