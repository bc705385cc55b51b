"""Rejection sampling by segments, against a transcription of the authors' loop on the toy."""

import math

import pytest
from test_blocks import is_open, reward
from toy_world import ToyPolicy, drive, prompt, scores_of

from aisp_ray.methods.base import planned_cost
from aisp_ray.methods.blockwise import Blockwise
from aisp_ray.methods.cards import Cards
from aisp_ray.rng import generator
from aisp_ray.types import Scores

SETTINGS = {"block": 2, "max_new_tokens": 6, "target": 2.0, "start": -1.0}


def by_the_authors_loop(policy, method):
    """One candidate at a time; after 20 rejections the next one is drawn and the best of all is taken."""
    tokens, best, rejected, k = (), None, 0, 0
    while not tokens or is_open(tokens):
        proposal = method.ask(method.init(prompt(), 0).__class__("toy/test/00000000", 0, k, tokens=tokens))
        candidate = policy.rollout(prompt(), proposal, 0).items[0].token_ids
        best = candidate if best is None or reward(candidate) > reward(best) else best
        threshold = min(-1.0 + len(candidate) * (2.0 + 1.0) / 6, 2.0)
        uniform = generator(0, prompt().prompt_id, "cards", k).random(1)[0]
        if rejected >= method.rounds - 1:
            tokens, best, rejected = best, None, 0
        elif uniform < min(1.0, math.exp((reward(candidate) - threshold) / method.beta)):
            tokens, best, rejected = candidate, None, 0
        else:
            rejected += 1
        k += 1
    return tokens, k


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rounds", "beta"), [(21, 0.5), (3, 0.01), (1, 1.0)])
def test_one_at_a_time_is_the_authors_loop(seed, rounds, beta):
    policy, method = ToyPolicy(max_new_tokens=6, seed=seed), Cards(n=1, rounds=rounds, beta=beta, **SETTINGS)
    state, history = drive(method, policy, reward)
    assert (state.best.token_ids, len(history)) == by_the_authors_loop(policy, method)


def test_one_round_without_acceptance_is_blockwise_best_of_n():
    policy = ToyPolicy(max_new_tokens=6, seed=2)
    hard = {**SETTINGS, "target": 1e6, "start": 1e6}
    one, _ = drive(Cards(n=8, rounds=1, beta=0.01, **hard), policy, reward)
    two, _ = drive(Blockwise(n=8, block=2, max_new_tokens=6), policy, reward)
    assert one.best.token_ids == two.best.token_ids


def test_a_threshold_that_all_pass_costs_one_round_a_segment():
    low = {**SETTINGS, "target": -1e6, "start": -1e6}
    state, history = drive(Cards(n=4, **low), ToyPolicy(max_new_tokens=6, ends=False), reward)
    assert [info["accepted"] for *_, info in history] == [1.0] * 3
    assert state.best.particle == 0  # the first one drawn
    assert state.best.token_ids[:2] == history[0][1].items[0].token_ids


def test_the_planned_cost_is_that_of_a_policy_that_never_ends_and_is_never_accepted():
    method = Cards(n=4, rounds=3, beta=0.01, **{**SETTINGS, "target": 1e6, "start": 1e6, "max_new_tokens": 5})
    _, history = drive(method, ToyPolicy(max_new_tokens=6, ends=False), reward)
    cost = planned_cost(method, 6)
    assert cost["samples"] == sum(len(rollouts.items) for _, rollouts, _, _ in history)
    assert cost["generated_tokens"] == sum(rollouts.num_generated_tokens for _, rollouts, _, _ in history)


def test_without_rewards_it_ends_and_a_failed_candidate_is_never_taken():
    method, policy = Cards(n=2, rounds=2, **SETTINGS), ToyPolicy(max_new_tokens=6)
    state = method.init(prompt(), 0)
    for _ in range(2):
        rollouts = policy.rollout(prompt(), method.ask(state), 0)
        state, _ = method.tell(state, rollouts, Scores((math.nan,) * 2))
    assert (state.done, state.best) == (True, None)
    state = method.init(prompt(), 0)
    rollouts = policy.rollout(prompt(), method.ask(state), 0)
    state, _ = method.tell(state, rollouts, Scores((math.nan, scores_of(rollouts, lambda ids: 9.0).rewards[1])))
    assert state.best.particle == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start": 3.0}, "start is 3.0; it is at most target=2.0"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_settings_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        Cards(**{**SETTINGS, **change})
