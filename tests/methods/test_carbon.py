"""Calibrated best-of-n: the fit against Newton's method in float64, and its two phases."""

import numpy as np
import pytest
import torch
from toy_world import DIM, ToyPolicy, drive

from aisp_ray.controls import shift as shifts
from aisp_ray.controls.shift import Shift
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.methods.carbon import Carbon
from aisp_ray.pipeline.codec import decode, encode

SMALL = {"n": 6, "kappa": 4, "explore": 0.5, "top": 3}
RESPONSES = ((1, 2, 3, 0), (2, 2, 0), (4, 0), (3, 3, 3, 3))


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids)))


def by_newton(policy, responses, temperature, strength):
    """The minimum of the same objective by Newton's method."""
    z = np.concatenate([policy.replay([ids])[0].double().numpy() for ids in responses])
    y = np.concatenate(responses)
    W, b = policy.weight.double().numpy() / temperature, policy.bias.double().numpy() / temperature
    s = np.zeros(DIM)
    for _ in range(30):
        logits = (z + s) @ W.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = (p - np.eye(5)[y]).mean(0) @ W + strength * s
        covariance = np.diag(p.sum(0)) - p.T @ p
        s -= np.linalg.solve(W.T @ covariance @ W / len(y) + strength * np.eye(DIM), gradient)
    return s


@pytest.mark.parametrize(("temperature", "strength"), [(1.0, 0.01), (0.7, 0.1), (1.5, 1.0)])
def test_the_shift_is_the_minimum_that_newton_finds(temperature, strength):
    policy = ToyPolicy(max_new_tokens=4, seed=1)
    mean = Shift(RESPONSES, temperature, strength).fold(policy, 5)
    assert mean.shape == (5, DIM)
    assert torch.equal(mean, mean[:1].expand(5, DIM))
    np.testing.assert_allclose(mean[0].numpy(), by_newton(policy, RESPONSES, temperature, strength), atol=1e-3)


def test_the_fit_does_not_depend_on_its_chunks_and_works_in_inference_mode(monkeypatch):
    policy, spec = ToyPolicy(max_new_tokens=4, seed=1), Shift(RESPONSES, 1.0, 0.1)
    whole = spec.fold(policy, 2)
    monkeypatch.setattr(shifts, "CHUNK_ELEMENTS", 5 * 4)
    with torch.inference_mode():
        torch.testing.assert_close(spec.fold(policy, 2), whole, atol=1e-3, rtol=0)
    assert spec.parent() is None
    assert decode(encode(spec)) == spec


def test_it_explores_then_draws_under_the_shift_of_the_best_of_that_phase():
    policy, method = ToyPolicy(max_new_tokens=4, seed=2), Carbon(**SMALL)
    _, history = drive(method, policy, reward)
    first = {item.token_ids for _, rollouts, _, _ in history[:2] for item in rollouts.items}
    best = tuple(sorted(first, key=lambda ids: -reward(ids))[:3])
    for k, (proposal, *_) in enumerate(history):
        assert proposal.sampling.temperature == (1.0 if k < 2 else 0.7)
        mean = getattr(proposal.control, "mean", None)
        assert mean is None if k < 2 else {reward(ids) for ids in mean.token_ids} == {reward(ids) for ids in best}
    assert len({proposal.control for proposal, *_ in history[2:]}) == 1  # fitted once
    plain, _ = drive(BestOfN(n=6, kappa=2, top_p=1.0), policy, reward)
    assert plain.best.reward == max(map(reward, first))


def test_under_the_shift_the_best_responses_are_likelier():
    policy = ToyPolicy(max_new_tokens=4, seed=2)
    best = ((4, 4, 4, 4), (4, 3, 4, 4))
    s = Shift(best, 1.0, 0.01).fold(policy, 1)[0]

    def surprise(shift):
        rows = [(policy.head(policy.replay([ids])[0] + shift).log_softmax(-1), ids) for ids in best]
        return -sum(float(row[t, y]) for row, ids in rows for t, y in enumerate(ids))

    assert surprise(s) < 0.8 * surprise(torch.zeros(DIM))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"explore": 1.0}, "explore is 1"),
        ({"top": 0}, "top is 0"),
        ({"strength": 0.0}, "strength is 0"),
        ({"steps": 0}, "steps"),
    ],
)
def test_settings_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        Carbon(**{**SMALL, **change})
