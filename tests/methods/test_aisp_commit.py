"""AISP on a committed prefix against a transcription, its schedule and its limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from toy_world import DIM, ToyPolicy, drive

from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.aisp_commit import AispCommit

SMALL = {"n": 8, "kappa": 6, "sigma": 0.7, "reward_temperature": 2.0, "alpha": 0.9, "temperature": 0.0}


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids)))


def test_the_loop_is_aisps_after_a_growing_prefix_of_the_best_response():
    policy = ToyPolicy(max_new_tokens=8, ends=False, seed=2)
    method = AispCommit(**SMALL, commit=0.9)
    state, history = drive(method, policy, reward)
    U, best, best_reward = np.zeros((8, DIM)), None, -np.inf
    for k, (proposal, rollouts, scores, info) in enumerate(history):
        m = 0 if k < 2 else min(int(0.9 * (k - 1) / 4 * 8), 6)
        assert proposal.prefixes == (None if m == 0 else (best[:m],) * 8)
        assert info["committed_tokens"] == m
        V = U + 0.7 * policy.noise(k, range(8), 8).double().numpy()
        r = np.array(scores.rewards)
        log_ratio = -((V - 0.9 * U) ** 2 - (V - U) ** 2)[:, m:].sum((1, 2)) / (2 * 0.7**2)
        s = r / 2.0 + log_ratio
        w = np.exp(s - s.max())
        U[m:] = np.einsum("n,ntd->td", w / w.sum(), V[:, m:])
        for item, value in zip(rollouts.items, r, strict=True):
            if value > best_reward:
                best, best_reward = item.token_ids, value
    np.testing.assert_allclose(state.log.fold(policy, 8).double().numpy(), U, atol=5e-5)
    assert [info["committed_tokens"] for *_, info in history] == [0, 0, 1, 3, 5, 6]
    assert state.best.token_ids == best


def test_a_later_schedule_commits_less_before_the_last_iteration():
    policy = ToyPolicy(max_new_tokens=8, ends=False)
    committed = {}
    for power in (0.5, 1.0, 3.0):
        _, history = drive(AispCommit(**SMALL, power=power), policy, reward)
        committed[power] = [info["committed_tokens"] for *_, info in history]
        assert committed[power] == sorted(committed[power])
        assert committed[power][-1] == 6
    assert committed[0.5][2] > committed[1.0][2] > committed[3.0][2]


def test_with_every_iteration_free_it_is_aisp():
    policy = ToyPolicy()
    free, _ = drive(AispCommit(**SMALL, free_iterations=6), policy, reward)
    aisp, _ = drive(Aisp(**SMALL), policy, reward)
    assert (free.log, free.best) == (aisp.log, aisp.best)


def test_only_what_the_winners_agree_on_is_committed():
    policy = ToyPolicy(max_new_tokens=8, ends=False, seed=2)
    method = AispCommit(**SMALL, commit=1.0, winners=3)
    _, history = drive(method, policy, reward)
    drawn = {}
    for k, (proposal, rollouts, _, info) in enumerate(history):
        top = sorted(drawn, key=lambda ids: -drawn[ids])[:3]
        common = next(t for t in range(9) if t == 8 or len({ids[: t + 1] for ids in top}) > 1) if top else 0
        m = 0 if k < 2 else min(int(1.0 * (k - 1) / 4 * 8), 6, common)
        assert info["committed_tokens"] == m
        assert proposal.prefixes == (None if m == 0 else (top[0][:m],) * 8)
        drawn |= {item.token_ids: reward(item.token_ids) for item in rollouts.items if item.token_ids not in drawn}
    assert any(info["committed_tokens"] for *_, info in history)


def test_noise_may_grow_along_the_response_and_the_update_stays_the_same():
    policy = ToyPolicy(max_new_tokens=8, ends=False)
    _, history = drive(AispCommit(**SMALL, sigma_decay=1.1), policy, reward)
    assert {proposal.control.decay for proposal, *_ in history} == {1.1}
    with pytest.raises(ValueError, match="sigma_decay is 0"):
        AispCommit(sigma_decay=0)
    with pytest.raises(ValueError, match="winners is 1; give 0, or 2 or more"):
        AispCommit(winners=1)


def test_what_is_committed_is_not_generated_again():
    policy = ToyPolicy(max_new_tokens=8, ends=False)
    _, history = drive(AispCommit(**SMALL), policy, reward)
    for _, rollouts, _, info in history:
        assert rollouts.num_generated_tokens == 8 * (8 - info["committed_tokens"])


def test_without_adaptation_the_prefix_grows_and_the_mean_stays_zero():
    policy = ToyPolicy(max_new_tokens=8, ends=False)
    state, history = drive(AispCommit(**SMALL, adapt=False), policy, reward)
    assert state.log.entries == ()
    assert all(proposal.control.mean is None for proposal, *_ in history)
    assert history[-1][3]["committed_tokens"] == 6


def test_a_response_of_one_or_two_tokens_commits_nothing():
    method = AispCommit(**SMALL)
    state, _ = drive(dataclasses.replace(method, kappa=3), ToyPolicy(), lambda ids: -float(len(ids)))
    assert len(state.best.token_ids) == 1
    assert method.prefix(dataclasses.replace(state, iteration=5)) == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"commit": 0.0}, "share in"), ({"free_iterations": 0}, "nothing to keep"), ({"power": 0.0}, "1 is linear")],
)
def test_bad_settings_say_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        AispCommit(**settings)
