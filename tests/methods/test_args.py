"""ARGS against exhaustive search over the toy's whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_world import END, VOCABULARY, ToyPolicy, drive, prompt

from aisp_ray.methods.args import Args
from aisp_ray.types import Scores


def reward(ids):
    return float(np.sin(sum((t + 2.3) * y for t, y in enumerate(ids))))


@pytest.mark.parametrize("weight", [0.0, 1.0, 20.0])
def test_greedy_with_every_token_is_the_step_by_step_argmax(weight):
    policy = ToyPolicy(seed=2)
    state, _ = drive(Args(k=VOCABULARY, weight=weight, max_new_tokens=4), policy, reward)
    ids = ()
    while len(ids) < 4 and (not ids or ids[-1] != END):
        logits = policy.head(policy.prelogit(ids))
        ids += (max(range(VOCABULARY), key=lambda v: float(logits[v]) + weight * reward((*ids, v))),)
    assert state.best.token_ids == ids
    assert state.best.reward == pytest.approx(reward(ids))


def test_a_reward_that_adds_up_over_positions_makes_it_the_best_of_all_responses():
    """With a position-wise reward and a policy without memory the greedy path is the global optimum."""
    policy = ToyPolicy(max_new_tokens=3, ends=False)
    policy.embedding[:] = 0.0  # the next-token logits depend on the position only
    table = np.random.default_rng(0).standard_normal((3, VOCABULARY))
    logits = [policy.head(policy.prelogit((1,) * t)) for t in range(3)]

    def total(ids):
        return sum(table[t, y] for t, y in enumerate(ids))

    state, _ = drive(Args(k=VOCABULARY, weight=3.0, max_new_tokens=3), policy, total)
    everything = [ids for ids, p in policy.responses() if p > 0]
    best = max(everything, key=lambda ids: sum(float(logits[t][y]) for t, y in enumerate(ids)) + 3.0 * total(ids))
    assert state.best.token_ids == best


def test_only_the_k_most_likely_tokens_are_tried_and_each_costs_a_sample():
    policy = ToyPolicy(ends=False)
    method = Args(k=2, weight=100.0, max_new_tokens=4)
    _, history = drive(method, policy, reward)
    for proposal, rollouts, _, _ in history:
        logits = policy.head(policy.prelogit(proposal.prefixes[0]))
        assert [item.token_ids[-1] for item in rollouts.items] == logits.topk(2).indices.tolist()
        assert rollouts.num_generated_tokens == 2
    assert sum(len(rollouts.items) for _, rollouts, _, _ in history) == method.num_samples == 8
    assert method.max_generated_tokens(128) == 8


def test_stochastic_choices_have_the_softmax_frequencies():
    policy = ToyPolicy(ends=False)
    method = Args(k=VOCABULARY, weight=1.0, max_new_tokens=1, temperature=0.7)
    rollouts = policy.rollout(prompt(), method.ask(method.init(prompt(), 0)), 0)  # the same k tokens for every seed
    scores = Scores(tuple(reward(item.token_ids) for item in rollouts.items))
    told = [method.tell(method.init(prompt(), seed), rollouts, scores)[0] for seed in range(1500)]
    picked = [state.best.token_ids[0] for state in told]
    value = policy.head(policy.prelogit(())).double() + torch.tensor([reward((v,)) for v in range(VOCABULARY)])
    expected = (value / 0.7).softmax(0)
    for v in range(VOCABULARY):
        assert (
            abs(picked.count(v) / 1500 - expected[v]) < 4 * float(expected[v] * (1 - expected[v]) / 1500) ** 0.5 + 1e-3
        )


def test_it_ends_at_the_policys_own_limit_and_never_takes_a_failed_token():
    policy = ToyPolicy(max_new_tokens=2, ends=False)
    state, history = drive(Args(k=3, max_new_tokens=9), policy, reward)
    assert state.best.token_ids == history[1][1].items[state.best.particle].token_ids
    assert len(history) == 3, "two tokens, and the round that finds no room"
    method, policy = Args(k=3, max_new_tokens=3), ToyPolicy(ends=False)
    start = method.init(prompt(), 0)
    rollouts = policy.rollout(prompt(), method.ask(start), 0)
    one, _ = method.tell(start, rollouts, Scores((math.nan, -50.0, math.nan)))
    assert one.best.particle == 1
    none, _ = method.tell(one, rollouts, Scores((math.nan,) * 3))
    assert none.done
    assert none.best == one.best


def test_bad_settings_say_what_is_allowed():
    with pytest.raises(ValueError, match="k is 0"):
        Args(k=0)
