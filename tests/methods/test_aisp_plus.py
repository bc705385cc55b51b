"""Each switch on its own; with none on it is AISP."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from toy_world import DIM, ToyPolicy, drive, prompt, scores_of

from aisp_ray.controls.laws import HeadShape
from aisp_ray.controls.weight_log import WeightLog
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.aisp_plus import AispPlus
from aisp_ray.pipeline.codec import decode, encode

SMALL = {"n": 8, "kappa": 4, "horizon": 4, "sigma": 0.7}


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids)))


def test_with_every_switch_off_it_is_aisp():
    aisp, _ = drive(Aisp(**SMALL, reward_temperature=2.0, alpha=0.9), ToyPolicy(), reward)
    plus, _ = drive(AispPlus(**SMALL, reward_temperature=2.0, alpha=0.9), ToyPolicy(), reward)
    assert plus.log == aisp.log
    assert plus.best == aisp.best


def test_the_effective_sample_size_is_the_asked_for_share_at_any_scale():
    policy = ToyPolicy(ends=False)
    one, history = drive(AispPlus(**SMALL, ess_fraction=0.4), policy, reward)
    two, _ = drive(AispPlus(**SMALL, ess_fraction=0.4), policy, lambda ids: 1024 * reward(ids) + 512)
    assert all(info["ess"] == pytest.approx(3.2, rel=1e-4) for *_, info in history)
    for a, b in zip(one.log.entries, two.log.entries, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-6)


def test_standardised_rewards_make_a_fixed_temperature_scale_free():
    settings = AispPlus(**SMALL, reward_temperature=0.5, standardise=True, alpha=1.0)
    one, history = drive(settings, ToyPolicy(ends=False), reward)
    two, _ = drive(settings, ToyPolicy(ends=False), lambda ids: 1024 * reward(ids))
    for a, b in zip(one.log.entries, two.log.entries, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-9)
    assert history[0][3]["reward_temperature"] == pytest.approx(0.5 * np.std(history[0][2].rewards))


def test_the_null_particle_is_the_plain_decode_and_the_mean_particle_the_means():
    policy = ToyPolicy(ends=False)
    method = AispPlus(**SMALL, ess_fraction=0.3, null_particle=True, mean_particle=True)
    state, history = drive(method, policy, reward)
    for k, (_, rollouts, _, _) in enumerate(history):
        mean, ids = WeightLog(state.log.entries[:k]).fold(policy, 4), ()
        while len(ids) < 4:
            ids += (int(policy.head(policy.prelogit(ids) + mean[len(ids)]).argmax()),)
        assert rollouts.items[0].token_ids == ids


def test_a_damped_step_goes_part_of_the_way():
    policy = ToyPolicy(ends=False)
    full, _ = drive(AispPlus(**{**SMALL, "kappa": 1}, reward_temperature=1.0), policy, reward)
    part, _ = drive(AispPlus(**{**SMALL, "kappa": 1}, reward_temperature=1.0, step_size=0.25), policy, reward)
    torch.testing.assert_close(part.log.fold(policy, 4), 0.25 * full.log.fold(policy, 4))


def test_sigma_shrinks_geometrically_to_its_final_value():
    _, history = drive(AispPlus(**SMALL, ess_fraction=0.3, sigma_final=0.0875), ToyPolicy(), reward)
    np.testing.assert_allclose([p.control.sigma for p, *_ in history], [0.7, 0.35, 0.175, 0.0875])


def test_scales_spread_over_particles_and_pairs_share_one():
    method = AispPlus(**SMALL, ess_fraction=0.3, sigma_ratio=2.0)
    scales = method.ask(method.init(prompt(), 0)).control.noise_scales
    assert scales[0] == pytest.approx(0.5)
    assert scales[-1] == pytest.approx(2.0)
    np.testing.assert_allclose(np.diff(np.log(scales)), np.log(4) / 7)
    paired = dataclasses.replace(method, antithetic=True)
    scales = paired.ask(paired.init(prompt(), 0)).control.noise_scales
    assert scales[0::2] == scales[1::2]


def test_antithetic_particles_see_mirrored_noise():
    policy = ToyPolicy(ends=False)
    method = AispPlus(**SMALL, ess_fraction=0.3, antithetic=True)
    proposal = method.ask(method.init(prompt(), 0))
    one, two = (policy.perturbations(proposal, i, None)[1] for i in (2, 3))
    assert one.abs().sum() > 0
    torch.testing.assert_close(one, -two)
    assert drive(method, policy, reward)[0].log.entries[0].antithetic


def test_noise_shaped_by_the_head_changes_the_control_and_nothing_else():
    plain = AispPlus(**SMALL, ess_fraction=0.3)
    for ridge, shape in ((None, HeadShape()), (2.0, HeadShape(2.0))):
        shaped = dataclasses.replace(plain, noise_shape="head", shape_ridge=ridge)
        one, two = (method.ask(method.init(prompt(), 0)) for method in (plain, shaped))
        assert one.control.shape is None
        assert two.control.shape == shape
        assert dataclasses.replace(two, control=dataclasses.replace(two.control, shape=None)) == one
        # the weights are those of the whitened coordinates, which the shape does not touch
        rollouts = ToyPolicy().rollout(prompt(), one, 0)
        told = [
            method.tell(method.init(prompt(), 0), rollouts, scores_of(rollouts, reward)) for method in (plain, shaped)
        ]
        assert told[0] == told[1]


def test_a_decay_along_the_response_is_handed_to_the_engine():
    method = AispPlus(**SMALL, ess_fraction=0.3, sigma_decay=0.9)
    assert method.ask(method.init(prompt(), 0)).control.decay == 0.9
    assert AispPlus(**SMALL, ess_fraction=0.3).ask(method.init(prompt(), 0)).control.decay == 1.0


def test_elites_take_part_in_later_updates_as_they_were_drawn():
    policy = ToyPolicy(ends=False)
    method = AispPlus(**SMALL, alpha=1.0, reward_temperature=2.0, elites=2)
    state, history = drive(method, policy, reward)
    U, memory, drawn = np.zeros((4, DIM)), [], {}
    for k, (_, _, scores, _) in enumerate(history):
        V = U + 0.7 * policy.noise(k, range(8), 4).double().numpy()
        drawn.update({(k, i): V[i] for i in range(8)})
        names = [*((k, i) for i in range(8)), *(name for _, name in memory)]
        r = np.array([*scores.rewards, *(value for value, _ in memory)])
        w = np.exp((r - r.max()) / 2.0)
        U = np.einsum("n,ntd->td", w / w.sum(), np.stack([drawn[name] for name in names]))
        memory = sorted([*memory, *((value, (k, i)) for i, value in enumerate(scores.rewards))], key=lambda m: -m[0])[
            :2
        ]
        log = WeightLog(state.log.entries[: k + 1])
        np.testing.assert_allclose(log.fold(policy, 4).double().numpy(), U, atol=2e-5)
        np.testing.assert_allclose(log.advance(log.parent().fold(policy, 4), policy, 4).double().numpy(), U, atol=2e-5)


def test_first_rounds_from_the_policy_leave_the_mean_at_zero():
    state, history = drive(
        AispPlus(**SMALL, ess_fraction=0.3, base_rounds=2, base_temperature=0.7), ToyPolicy(), reward
    )
    assert [p.sampling.temperature for p, *_ in history] == [0.7, 0.7, 0.0, 0.0]
    assert [entry.iteration for entry in state.log.entries] == [2, 3]
    assert history[2][0].control.mean is None
    assert state.best.reward == max(r for _, _, scores, _ in history for r in scores.rewards)


def test_everything_at_once_survives_a_snapshot_at_every_iteration():
    method = AispPlus(
        **SMALL, alpha=1.0, ess_fraction=0.3, null_particle=True, mean_particle=True, step_size=0.5, sigma_final=0.3,
        sigma_ratio=1.5, antithetic=True, elites=3, base_rounds=1, base_temperature=0.5,
    )  # fmt: skip
    policy, whole = ToyPolicy(), drive(method, ToyPolicy(), reward)[0]
    state = method.init(prompt(), 0)
    while not state.done:
        state = decode(encode(state))
        rollouts = policy.rollout(prompt(), method.ask(state), 0)
        state, _ = method.tell(state, rollouts, scores_of(rollouts, reward))
    assert state == whole


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "either ess_fraction or reward_temperature"),
        ({"ess_fraction": 0.3, "reward_temperature": 1.0}, "either"),
        ({"ess_fraction": 0.3, "standardise": True}, "no effect"),
        ({"ess_fraction": 0.3, "elites": 2}, "alpha=1"),
        ({"ess_fraction": 0.3, "base_rounds": 2}, "go together"),
        ({"ess_fraction": 1.5}, "share of n"),
        ({"ess_fraction": 0.3, "step_size": 0.0}, "step_size"),
        ({"ess_fraction": 0.3, "sigma_decay": 0.0}, "sigma_decay"),
        ({"ess_fraction": 0.3, "noise_shape": "round"}, "isotropic or head"),
        ({"ess_fraction": 0.3, "shape_ridge": 0.1}, "no effect without noise_shape=head"),
        ({"ess_fraction": 0.3, "noise_shape": "head", "shape_ridge": 0.0}, "above 0"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        AispPlus(**settings)
