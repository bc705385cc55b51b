from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from toy_world import ToyPolicy, drive, prompt, scores_of

from aisp_ray.methods._selection import poisson_draws
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.aisp_commit import AispCommit
from aisp_ray.methods.aisp_population import AispPopulation
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.methods.misvo import Misvo
from aisp_ray.methods.qalign import QAlign
from aisp_ray.types import Scores


def reward(ids):
    return float(sum(ids)) - len(ids)


def test_it_returns_the_best_of_all_its_draws():
    state, history = drive(BestOfN(n=4, kappa=3, top_p=1.0), ToyPolicy(), reward)
    rewards = [r for _, _, scores, _ in history for r in scores.rewards]
    assert len(rewards) == 12
    assert state.best.reward == max(rewards)


def test_draws_have_the_policys_frequencies():
    policy = ToyPolicy(max_new_tokens=2)
    _, history = drive(BestOfN(n=600, kappa=1, top_p=1.0), policy, reward)
    drawn = [item.token_ids for item in history[0][1].items]
    for ids, probability in policy.responses():
        error = (probability * (1 - probability) / 600) ** 0.5
        assert abs(drawn.count(ids) / 600 - probability) < 4 * error + 1e-3, ids


def test_rounds_draw_different_responses_and_repeat_exactly():
    policy = ToyPolicy()
    runs = [drive(BestOfN(n=16, kappa=2), policy, reward)[1] for _ in range(2)]
    texts = [[[item.text for item in rollouts.items] for _, rollouts, _, _ in run] for run in runs]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


@pytest.mark.parametrize(
    ("settings", "words"), [({"n": 0}, "n is 0"), ({"temperature": 0.0}, "sampling"), ({"top_p": 0.0}, "top_p is 0")]
)
def test_bad_settings_say_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        BestOfN(**settings)


def pool_of(history):
    return [
        (r, item) for _, rollouts, scores, _ in history for r, item in zip(scores.rewards, rollouts.items, strict=True)
    ]


def test_soft_selection_has_the_softmax_frequencies():
    policy, beta = ToyPolicy(max_new_tokens=2), 1.5
    method = BestOfN(n=3, kappa=2, top_p=1.0, select="soft", select_beta=beta)
    start = method.init(prompt(), 0)
    rounds = [policy.rollout(prompt(), replace(method.ask(start), iteration=k), 0) for k in range(2)]
    scores = [scores_of(rollouts, reward) for rollouts in rounds]
    rewards = np.array([r for each in scores for r in each.rewards])
    weights = np.exp(rewards / beta) / np.exp(rewards / beta).sum()
    picked = Counter()
    for seed in range(2000):
        state = method.init(prompt(), seed)
        for rollouts, each in zip(rounds, scores, strict=True):
            state, _ = method.tell(state, rollouts, each)
        assert state.best.reward == scores[state.best.iteration].rewards[state.best.particle]
        picked[state.best.iteration, state.best.particle] += 1
    for i, w in enumerate(weights):
        assert abs(picked[divmod(i, 3)] - 2000 * w) < 4 * (2000 * w) ** 0.5 + 1, i


def test_regularised_selection_prefers_likely_responses():
    method = BestOfN(n=8, kappa=3, top_p=1.0, select="regularised", select_beta=0.8)
    state, history = drive(method, ToyPolicy(), reward)
    r, item = max(pool_of(history), key=lambda pair: pair[0] + 0.8 * pair[1].logprob)
    assert state.best.token_ids == item.token_ids
    assert state.best.reward == r
    assert "logprob" in history[0][0].want


def test_a_random_selection_is_uniform_over_what_has_a_reward():
    policy, method = ToyPolicy(max_new_tokens=2), BestOfN(n=3, kappa=2, top_p=1.0, select="random")
    start = method.init(prompt(), 0)
    drawn = [policy.rollout(prompt(), replace(method.ask(start), iteration=k), 0) for k in range(2)]
    scores = [scores_of(drawn[0], reward), Scores((math.nan, 1.0, 2.0))]
    picked = Counter()
    for seed in range(1000):
        state = method.init(prompt(), seed)
        for rollouts, each in zip(drawn, scores, strict=True):
            state, _ = method.tell(state, rollouts, each)
        assert state.best.reward == scores[state.best.iteration].rewards[state.best.particle]
        picked[state.best.iteration, state.best.particle] += 1
    assert set(picked) == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)}
    assert all(abs(count - 200) < 4 * 200**0.5 for count in picked.values())


def test_best_of_poisson_is_the_best_of_a_poisson_number_of_draws_and_makes_no_more():
    policy, method = ToyPolicy(), BestOfN(n=4, kappa=6, top_p=1.0, select="poisson", select_beta=9.0)
    pool = pool_of(drive(replace(method, select="best", select_beta=None), policy, reward)[1])
    counts = [poisson_draws(9.0, (seed, prompt().prompt_id)) for seed in range(500)]
    assert np.mean(counts) == pytest.approx(10, abs=4 * (9 / 500) ** 0.5)
    assert np.var(counts) == pytest.approx(9, rel=0.3)
    state, history = drive(method, policy, reward)
    allowed = counts[0]
    assert len(history) == -(-min(allowed, 24) // 4)
    assert state.best.reward == max(r for r, _ in pool[:allowed])


@pytest.mark.parametrize("select", ["soft", "poisson", "random"])
def test_every_iterative_method_selects_by_the_same_rules(select):
    beta = None if select == "random" else 2.0
    for cls in (Aisp, AispCommit, AispPopulation, Misvo, QAlign):
        state, history = drive(cls(n=4, kappa=3, select=select, select_beta=beta), ToyPolicy(), reward)
        assert state.best.token_ids in {item.token_ids for _, rollouts, _, _ in history for item in rollouts.items}
        assert state.best.reward == reward(state.best.token_ids)
    with pytest.raises(ValueError, match="it is one of best, soft, poisson, random"):
        AispPopulation(select="regularised", select_beta=1.0)


def test_a_draw_that_costs_more_than_it_gains_is_not_made():
    costly, history = drive(BestOfN(n=4, kappa=8, draw_cost=0.5), ToyPolicy(), reward)
    gains = [info["expected_gain_of_a_draw"] for *_, info in history]
    assert costly.done
    assert len(history) < 8
    assert gains[-1] < 0.5
    assert all(gain >= 0.5 for gain in gains[:-1])
    assert len(drive(BestOfN(n=4, kappa=8), ToyPolicy(), reward)[1]) == 8


def test_beta_belongs_to_the_selections_that_use_it():
    with pytest.raises(ValueError, match="no effect"):
        BestOfN(select_beta=1.0)
    with pytest.raises(ValueError, match="needs it"):
        BestOfN(select="soft")
