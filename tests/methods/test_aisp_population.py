from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from toy_world import ToyPolicy, drive, prompt

from aisp_ray.methods.aisp_population import AispPopulation, Member, remember
from aisp_ray.pipeline.codec import decode, encode
from aisp_ray.types import Rollout, Rollouts, Scores
from aisp_ray.weights import importance_weights, systematic, temperature_for_ess


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids)))


def test_systematic_resampling_is_unbiased_and_within_one_of_the_expected_counts():
    weights = np.array([0.5, 0.31, 0.19, 0.0])
    counts = np.array([np.bincount(systematic(weights, 7, (u + 0.5) / 500), minlength=4) for u in range(500)])
    np.testing.assert_allclose(counts.mean(0), 7 * weights, atol=0.02)
    assert (np.abs(counts - 7 * weights) < 1).all()


def test_ancestors_are_drawn_by_aisps_weights_with_the_asked_for_effective_number():
    method = AispPopulation(n=2000, kappa=2, memory=8, ancestors=3.0)
    members = tuple(Member(r, (i, 1, 1, 1)) for i, r in enumerate([5.0, 4.0, 3.5, 2.0, 1.0]))
    state = method.init(prompt(), 0)
    state = type(state)(**{**{f: getattr(state, f) for f in ("prompt_id", "seed")}, "iteration": 1, "members": members})
    kept = [prefix for prefix in method.ask(state).prefixes if prefix]
    share = np.bincount([prefix[0] for prefix in kept], minlength=5) / len(kept)
    rewards = [m.reward for m in members]
    expected = importance_weights(rewards, temperature_for_ess(rewards, 3.0))
    assert 1 / np.square(expected).sum() == pytest.approx(3.0, rel=1e-6)
    np.testing.assert_allclose(share, expected, atol=0.04)
    for keep, shares in ((1.0, [0.25, 0.25, 0.25, 0.25, 0.0]), (0.5, [0.5, 0.5, 0.0, 0.0, 0.0])):
        prefixes = replace(method, keep=keep).ask(state).prefixes
        lengths = np.bincount([len(prefix) for prefix in prefixes], minlength=5)
        np.testing.assert_allclose(lengths / 2000, shares, atol=0.04)


def test_the_memory_holds_the_best_distinct_responses():
    def row(i, ids):
        return Rollout(i, "", ids, "stop", len(ids))

    before = (Member(2.0, (1, 0)), Member(1.0, (2, 0)))
    rollouts = Rollouts(1, (row(0, (1, 0)), row(1, (3, 0)), row(2, (4, 0)), row(3, (4, 4)), row(4, ())), 1)
    after = remember(before, rollouts, Scores((9.0, 1.5, math.nan, 1.0, 5.0)), 3)
    assert after == (Member(2.0, (1, 0)), Member(1.5, (3, 0)), Member(1.0, (2, 0)))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0, "sigma": 0.8}, {"fresh": 0.25}, {"first_rounds": 3}])
def test_children_continue_members_of_the_memory(settings):
    method = AispPopulation(n=8, kappa=5, memory=6, ancestors=2.0, **settings)
    policy, state = ToyPolicy(), method.init(prompt(), 0)
    while not state.done:
        proposal = method.ask(state)
        assert (proposal.prefixes is None) == (state.iteration < method.first_rounds)
        heads = {member.token_ids[:t] for member in state.members for t in range(len(member.token_ids))}
        assert all(prefix in heads for prefix in proposal.prefixes or ())
        if proposal.prefixes and method.fresh:
            assert proposal.prefixes[-2:] == ((), ())
        rollouts = policy.rollout(prompt(), proposal, 0)
        state, _ = method.tell(
            decode(encode(state)), rollouts, Scores(tuple(reward(i.token_ids) for i in rollouts.items))
        )
        assert state.best.reward == state.members[0].reward


def test_a_reward_scaled_and_shifted_gives_the_same_search():
    method = AispPopulation(n=8, kappa=5, memory=6, ancestors=2.0)
    one, _ = drive(method, ToyPolicy(), reward)
    two, _ = drive(method, ToyPolicy(), lambda ids: 1024 * reward(ids) + 4096)
    assert [m.token_ids for m in one.members] == [m.token_ids for m in two.members]


def test_it_finds_better_responses_than_its_first_round():
    state, history = drive(AispPopulation(n=8, kappa=8, memory=6, ancestors=2.0), ToyPolicy(ends=False), reward)
    assert state.best.reward > max(history[0][2].rewards)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"ancestors": 40.0}, "in .1, memory"), ({"temperature": 0.0}, "both 0"), ({"fresh": 1.0}, "fresh is 1.0")],
)
def test_bad_settings_say_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        AispPopulation(**settings)
