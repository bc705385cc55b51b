"""QAlign's chain against its known stationary distribution on a world that can be enumerated."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from toy_world import END, ToyPolicy, drive, prompt

from aisp_ray.methods.base import Candidate
from aisp_ray.methods.qalign import QAlign, acceptance
from aisp_ray.pipeline.codec import decode, encode
from aisp_ray.types import Scores


def reward(ids):
    return float(sum(ids)) / 4


def kernel(policy, beta):
    """Transition matrix of one step over all responses, by enumeration of cuts and suffixes."""
    responses = policy.responses()
    index = {ids: i for i, (ids, _) in enumerate(responses)}
    P = np.zeros((len(responses), len(responses)))
    for ids, _ in responses:
        old = Candidate("", reward(ids), 0, 0, "", ids)
        for cut in range(len(ids)):
            inside = [(other, p) for other, p in responses if other[:cut] == ids[:cut]]
            mass = sum(p for _, p in inside)
            for other, p in inside:
                move = acceptance(old, Candidate("", reward(other), 0, 0, "", other), beta)
                P[index[ids], index[other]] += p / mass / len(ids) * move
                P[index[ids], index[ids]] += p / mass / len(ids) * (1 - move)
    return responses, P


def test_the_tilted_policy_is_stationary_under_the_step():
    policy, beta = ToyPolicy(max_new_tokens=3, seed=1), 0.5
    responses, P = kernel(policy, beta)
    target = np.array([p * math.exp(reward(ids) / beta) for ids, p in responses])
    target /= target.sum()
    np.testing.assert_allclose(P.sum(1), 1.0)
    np.testing.assert_allclose(target @ P, target, atol=1e-12)
    flow = target[:, None] * P
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)  # detailed balance


def test_the_running_method_draws_from_the_tilted_policy():
    policy, beta = ToyPolicy(max_new_tokens=2, seed=1), 0.6
    state, seen = None, Counter()
    method = QAlign(n=100, kappa=26, beta=beta)
    state = method.init(prompt(), 0)
    while not state.done:
        rollouts = policy.rollout(prompt(), method.ask(state), 0)
        state, _ = method.tell(state, rollouts, Scores(tuple(reward(item.token_ids) for item in rollouts.items)))
        if state.iteration > 8:
            seen.update(chain.token_ids for chain in state.chains)
    total = sum(seen.values())
    target = {ids: p * math.exp(reward(ids) / beta) for ids, p in policy.responses()}
    mass = sum(target.values())
    distance = 0.5 * sum(abs(seen[ids] / total - weight / mass) for ids, weight in target.items())
    base = 0.5 * sum(abs(p - target[ids] / mass) for ids, p in policy.responses())
    assert distance < 0.07
    assert base > 0.2, "the test needs a reward that tilts"


def test_a_step_keeps_a_prefix_and_counts_only_new_tokens():
    _, history = drive(QAlign(n=8, kappa=6), ToyPolicy(), reward)
    for (_, before, _, _), (proposal, after, _, _) in pairwise(history):
        del before
        for prefix, item in zip(proposal.prefixes, after.items, strict=True):
            assert item.token_ids[: len(prefix)] == prefix
            assert item.num_generated_tokens == len(item.token_ids) - len(prefix) >= 1
            assert END not in prefix


def test_chains_repeat_exactly_and_survive_a_snapshot():
    method = QAlign(n=4, kappa=5)
    one, two = (drive(method, ToyPolicy(), reward)[0] for _ in range(2))
    assert repr(one) == repr(two) == repr(decode(encode(one)))  # a NaN log-probability equals no other NaN


def test_a_failed_response_is_never_moved_to():
    method, policy = QAlign(n=2, kappa=3), ToyPolicy()
    state = method.init(prompt(), 0)
    rollouts = policy.rollout(prompt(), method.ask(state), 0)
    state, info = method.tell(state, rollouts, Scores((math.nan, 1.0)))
    assert state.chains[0] is None
    assert state.chains[1].reward == 1.0
    assert info["accept_rate"] == 0.5
    again, _ = method.tell(state, rollouts, Scores((math.nan, math.nan)))
    assert again.chains == state.chains


def test_last_returns_where_the_first_chain_is():
    state, _ = drive(QAlign(n=3, kappa=5, select="last"), ToyPolicy(), reward)
    assert state.best == state.chains[0]


def test_last_passes_over_a_chain_that_never_got_a_reward():
    policy, method = ToyPolicy(), QAlign(n=3, kappa=2, select="last")
    state = method.init(prompt(), 0)
    while not state.done:
        rollouts = policy.rollout(prompt(), method.ask(state), 0)
        state, _ = method.tell(state, rollouts, Scores((math.nan, 1.0, 2.0)))
    assert state.chains[0] is None
    assert state.best == state.chains[1]


def test_bad_settings_say_what_is_allowed():
    with pytest.raises(ValueError, match="beta is 0"):
        QAlign(beta=0.0)
    with pytest.raises(ValueError, match="one of best, soft, poisson, random, last"):
        QAlign(select="mean")
