"""AISP against its equations, its limits and its invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_world import DIM, ToyPolicy, drive, prompt, scores_of

from aisp_ray import config
from aisp_ray.methods.aisp import Aisp
from aisp_ray.pipeline.codec import decode, encode
from aisp_ray.types import Rollout, Rollouts, Scores


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids)))


def transcription(policy, method, history):
    """The paper's loop in float64, noise given: returns U after every iteration. All particles live to the end."""
    U = np.zeros((method.horizon, DIM))
    means = []
    for k in range(method.kappa):
        eps = policy.noise(k, range(method.n), method.horizon).double().numpy()
        V = U + method.sigma * eps  # [n, t, d]
        r = np.array(history[k][2].rewards)
        cost = (1 - method.alpha) / method.sigma**2 * np.einsum("td,ntd->n", U, V)
        w = np.exp(r / method.reward_temperature - cost - (r / method.reward_temperature - cost).max())
        U = np.einsum("n,ntd->td", w / w.sum(), V)
        means.append(U)
    return means


@pytest.mark.parametrize("alpha", [0.0, 0.9, 0.999, 1.0])
def test_the_update_is_the_papers(alpha):
    policy = ToyPolicy(ends=False)
    method = Aisp(n=8, kappa=4, sigma=0.7, reward_temperature=2.0, alpha=alpha, horizon=4)
    state, history = drive(method, policy, reward)
    for log_length, expected in enumerate(transcription(policy, method, history), start=1):
        mean = type(state.log)(state.log.entries[:log_length]).fold(policy, method.horizon)
        np.testing.assert_allclose(mean.double().numpy(), expected, atol=2e-5)


def test_dead_positions_are_in_neither_cost_nor_update():
    policy = ToyPolicy(ends=True, seed=3)
    method = Aisp(n=8, kappa=3, sigma=0.9, reward_temperature=1.0, alpha=0.5, horizon=4)
    state, history = drive(method, policy, reward)
    assert len({len(item.token_ids) for item in history[0][1].items}) > 1, "the test needs unequal lengths"
    U = np.zeros((4, DIM))
    for k in range(3):
        V = U + method.sigma * policy.noise(k, range(8), 4).double().numpy()
        live = np.array([[t < len(item.token_ids) for t in range(4)] for item in history[k][1].items])  # [n, t]
        log_q = -((V - U) ** 2).sum(-1) / (2 * method.sigma**2)
        log_p = -((V - method.alpha * U) ** 2).sum(-1) / (2 * method.sigma**2)
        s = np.array(history[k][2].rewards) / method.reward_temperature + ((log_p - log_q) * live).sum(1)
        w = np.exp(s - s.max())[:, None] * live
        total = w.sum(0)
        share = np.divide(w, total, out=np.zeros_like(w), where=total > 0)
        U = np.where(total[:, None] > 0, np.einsum("nt,ntd->td", share, V), U)
    np.testing.assert_allclose(state.log.fold(policy, 4).double().numpy(), U, atol=2e-5)


def test_at_alpha_0_a_reward_linear_in_v_has_the_known_mean():
    """q* ~ exp(a.V / lambda) N(0, sigma^2 I) is N(sigma^2 a / lambda, sigma^2 I)."""
    sigma, lam, n = 0.5, 0.8, 4000
    a = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.75, -1.0]])  # [t, d]
    source = ToyPolicy()
    method = Aisp(n=n, kappa=5, sigma=sigma, reward_temperature=lam, alpha=0.0, horizon=2)
    state = method.init(prompt(), 0)
    means = []
    while not state.done:
        U = state.log.fold(source, 2)
        eps = torch.from_numpy(np.random.default_rng(state.iteration).standard_normal((n, 2, 3))).float()
        source.noise = (
            lambda k, who, horizon, start=0: torch.from_numpy(  # the same draws for the fold
                np.random.default_rng(k).standard_normal((n, 2, 3))
            ).float()[list(who), start:horizon]
        )
        V = U + sigma * eps
        items = tuple(
            Rollout(
                i, "", (1, 1), "length", 2, control_inner=float((U * V[i]).sum()), control_square=float((U * U).sum())
            )
            for i in range(n)
        )
        rewards = tuple((a * V).sum((1, 2)).tolist())
        state, _ = method.tell(state, Rollouts(state.iteration, items, 1), Scores(rewards))
        means.append(state.log.fold(source, 2))
    expected = sigma**2 * a / lam
    # an importance-sampling mean of n draws is off by about sigma / sqrt(ESS); the later ones start at the answer
    for mean in means:
        torch.testing.assert_close(mean, expected, atol=0.06, rtol=0)


def test_a_tiny_temperature_moves_the_mean_onto_the_best_particle():
    policy = ToyPolicy(ends=False)
    method = Aisp(n=8, kappa=1, sigma=0.7, reward_temperature=1e-6, horizon=4)
    state, history = drive(method, policy, lambda ids: sum(y * 5.0**t for t, y in enumerate(ids)))
    rewards = history[0][2].rewards
    assert sorted(rewards)[-1] > sorted(rewards)[-2], "the test needs one winner"
    winner = int(np.argmax(rewards))
    torch.testing.assert_close(state.log.fold(policy, 4), 0.7 * policy.noise(0, [winner], 4)[0])
    assert state.best.particle == winner


def test_a_constant_added_to_every_reward_changes_nothing():
    policy = ToyPolicy()
    method = Aisp(n=8, kappa=4, sigma=0.7, reward_temperature=0.5, horizon=4)
    plain, _ = drive(method, policy, reward)
    shifted, _ = drive(method, policy, lambda ids: reward(ids) + 1000.0)
    assert plain.best.token_ids == shifted.best.token_ids
    for one, other in zip(plain.log.entries, shifted.log.entries, strict=True):
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-9)


def test_a_failed_particle_has_no_weight_and_all_failed_leave_the_mean():
    policy = ToyPolicy()
    method = Aisp(n=4, kappa=3, horizon=4)
    state = method.init(prompt(), 0)
    rollouts = policy.rollout(prompt(), method.ask(state), 0)
    state, _ = method.tell(state, rollouts, Scores((1.0, math.nan, 2.0, math.nan)))
    assert state.log.entries[0].weights[1] == state.log.entries[0].weights[3] == 0.0
    after, _ = method.tell(state, policy.rollout(prompt(), method.ask(state), 0), Scores((math.nan,) * 4))
    assert after.log == state.log
    assert after.iteration == 2
    assert after.best == state.best


def test_the_mean_stays_zero_without_adaptation():
    policy = ToyPolicy()
    state, history = drive(Aisp(n=4, kappa=3, horizon=4, adapt=False), policy, reward)
    assert state.log.entries == ()
    assert all(proposal.control.mean is None for proposal, *_ in history)


def test_the_state_survives_a_snapshot_at_every_iteration():
    policy, method = ToyPolicy(), Aisp(n=4, kappa=3, horizon=4)
    whole, _ = drive(method, policy, reward)
    state = method.init(prompt(), 0)
    while not state.done:
        state = decode(encode(state))
        rollouts = policy.rollout(prompt(), method.ask(state), 0)
        state, _ = method.tell(state, rollouts, scores_of(rollouts, reward))
    assert state == whole


def test_the_batched_preset_is_aisp_with_more_particles_and_fewer_iterations():
    aisp, batched = (config.read_choice("method", name) for name in ("aisp", "aisp_batched"))
    assert {**batched, "n": aisp["n"], "kappa": aisp["kappa"]} == aisp
    assert batched["n"] * batched["kappa"] == aisp["n"] * aisp["kappa"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n": 0}, "n is 0"),
        ({"sigma": -1.0}, "standard deviation"),
        ({"sigma": 0.0}, "adapt=false"),
        ({"reward_temperature": 0.0}, "reward_temperature"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"horizon": 0}, "horizon"),
        ({"top_p": 0.5}, "temperature"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        Aisp(**settings)
