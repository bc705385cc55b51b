from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from toy_world import ToyPolicy, drive, prompt, scores_of

from aisp_ray.methods.best_of_n import BestOfN


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
    method = BestOfN(n=3, kappa=2, top_p=1.0, select="soft", beta=beta)
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
    method = BestOfN(n=8, kappa=3, top_p=1.0, select="regularised", beta=0.8)
    state, history = drive(method, ToyPolicy(), reward)
    r, item = max(pool_of(history), key=lambda pair: pair[0] + 0.8 * pair[1].logprob)
    assert state.best.token_ids == item.token_ids
    assert state.best.reward == r
    assert "logprob" in history[0][0].want


def test_beta_belongs_to_the_selections_that_use_it():
    with pytest.raises(ValueError, match="no effect"):
        BestOfN(beta=1.0)
    with pytest.raises(ValueError, match="needs it"):
        BestOfN(select="soft")
