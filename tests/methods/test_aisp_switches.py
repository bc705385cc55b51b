"""AISP's switches beyond the paper, each on its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from toy_world import ToyPolicy, drive, prompt, scores_of

from aisp_ray.controls.weight_log import WeightLog
from aisp_ray.methods.aisp import Aisp
from aisp_ray.pipeline.codec import decode, encode

SMALL = {"n": 8, "kappa": 4, "horizon": 4, "sigma": 0.7}
ESS = {**SMALL, "reward_temperature": None, "ess_fraction": 0.4}


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids)))


def test_the_effective_sample_size_is_the_asked_for_share_at_any_scale():
    policy = ToyPolicy(ends=False)
    one, history = drive(Aisp(**ESS), policy, reward)
    two, _ = drive(Aisp(**ESS), policy, lambda ids: 1024 * reward(ids) + 512)
    assert all(info["ess"] == pytest.approx(3.2, rel=1e-4) for *_, info in history)
    for a, b in zip(one.log.entries, two.log.entries, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-6)


def test_the_temperature_that_was_found_gives_the_same_weights_when_it_is_fixed():
    method, policy = Aisp(**{**ESS, "kappa": 1}), ToyPolicy(ends=False)
    found, ((*_, info),) = drive(method, policy, reward)
    fixed = dataclasses.replace(method, ess_fraction=None, reward_temperature=info["reward_temperature"])
    assert drive(fixed, policy, reward)[0].log == found.log


def test_a_decay_along_the_response_is_handed_to_the_engine():
    method = Aisp(**SMALL, sigma_decay=0.9)
    assert method.ask(method.init(prompt(), 0)).control.decay == 0.9
    assert Aisp(**SMALL).ask(method.init(prompt(), 0)).control.decay == 1.0


def test_a_support_is_handed_to_the_engine_in_every_iteration_with_noise():
    method = Aisp(**SMALL, support_top_p=0.9)
    _, history = drive(method, ToyPolicy(), reward)
    assert [p.sampling.support_top_p for p, *_ in history] == [0.9] * 4
    for wrong in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match=f"support_top_p is {wrong}; it is a probability mass"):
            Aisp(**SMALL, support_top_p=wrong)


def test_first_iterations_from_the_policy_leave_the_mean_at_zero():
    state, history = drive(Aisp(**SMALL, base_rounds=2, base_temperature=0.7), ToyPolicy(), reward)
    assert [p.sampling.temperature for p, *_ in history] == [0.7, 0.7, 0.0, 0.0]
    assert [entry.iteration for entry in state.log.entries] == [2, 3]
    assert history[2][0].control.mean is None
    assert state.best.reward == max(r for _, _, scores, _ in history for r in scores.rewards)


def test_final_draws_are_made_under_the_last_mean_and_counted():
    plain, final = Aisp(**SMALL), Aisp(**SMALL, final_draws=3)
    before, first = drive(plain, ToyPolicy(), reward)
    after, history = drive(final, ToyPolicy(), reward)
    assert [scores for _, _, scores, _ in history[:4]] == [scores for _, _, scores, _ in first]
    assert history[4][0].num_samples == 3
    assert history[4][0].control.mean == before.log == after.log
    assert final.num_samples == sum(len(rollouts.items) for _, rollouts, _, _ in history) == 35
    assert final.num_iterations == len(history) == 5


def test_a_horizon_of_null_is_the_policys_limit():
    policy = ToyPolicy(max_new_tokens=4, ends=False)
    one, two, short = (drive(Aisp(**{**SMALL, "horizon": horizon}), policy, reward)[0] for horizon in (4, None, 2))
    assert one.log == two.log
    assert one.best == two.best
    assert one.log.entries[0].lengths != short.log.entries[0].lengths


def test_a_horizon_that_ends_before_the_response_is_remarked_upon():
    assert Aisp(horizon=64).remarks(128) == ["the first 64 of up to 128 tokens are controlled (horizon)"]
    assert Aisp(horizon=64).remarks(64) == Aisp().remarks(128) == []


def test_all_at_once_survives_a_snapshot_at_every_iteration():
    switches = {"sigma_decay": 0.9, "base_rounds": 1, "base_temperature": 0.5, "final_draws": 2, "diagnostics": True}
    method, policy = Aisp(**ESS, **switches), ToyPolicy()
    whole = drive(method, ToyPolicy(), reward)[0]
    state = method.init(prompt(), 0)
    while not state.done:
        state = decode(encode(state))
        rollouts = policy.rollout(prompt(), method.ask(state), 0)
        state, _ = method.tell(state, rollouts, scores_of(rollouts, reward))
    assert state == whole
    assert whole.log != WeightLog()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reward_temperature": None}, "set it, or ess_fraction"),
        ({"ess_fraction": 0.3}, "set reward_temperature=null beside it"),
        ({"reward_temperature": None, "ess_fraction": 1.5}, "share of n"),
        ({"base_rounds": 2}, "go together"),
        ({"base_rounds": 16, "base_temperature": 0.5}, "lies in"),
        ({"base_rounds": 2, "base_temperature": 0.0}, "above 0"),
        ({"sigma_decay": 0.0}, "sigma_decay"),
        ({"final_draws": -1}, "number of responses"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        Aisp(**settings)
