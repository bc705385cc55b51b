from __future__ import annotations

import math

import numpy as np
import pytest

from aisp_ray.weights import effective_sample_size, importance_weights, temperature_for_ess


def test_weights_are_the_softmax_of_rewards_over_temperature_minus_cost():
    r, cost = np.array([0.3, -1.0, 2.0]), np.array([0.1, 0.0, 1.5])
    expected = np.exp(r / 0.7 - cost) / np.exp(r / 0.7 - cost).sum()
    np.testing.assert_allclose(importance_weights(r, 0.7, cost), expected, rtol=1e-12)


def test_a_constant_reward_shift_changes_nothing_and_nothing_overflows():
    r = [1.0, 2.0, 3.0]
    np.testing.assert_allclose(importance_weights(r, 0.3), importance_weights([x + 1e4 for x in r], 0.3), atol=1e-9)
    np.testing.assert_array_equal(importance_weights([0.0, 1e3], 1e-12), [0.0, 1.0])


def test_temperature_runs_from_the_best_one_to_all_alike():
    np.testing.assert_allclose(importance_weights([1.0, 3.0, 2.0], 1e-9), [0, 1, 0])
    np.testing.assert_allclose(importance_weights([1.0, 3.0, 2.0], 1e9), [1 / 3] * 3, atol=1e-8)


def test_failed_particles_weigh_nothing():
    weights = importance_weights([1.0, math.nan, 1.0, math.inf], 1.0)
    np.testing.assert_allclose(weights, [0.5, 0.0, 0.5, 0.0])
    assert np.isnan(importance_weights([math.nan, math.nan], 1.0)).all()


def test_ess_counts_equal_particles():
    assert effective_sample_size([0.25] * 4) == pytest.approx(4)
    assert effective_sample_size([1.0, 0.0]) == pytest.approx(1)
    assert math.isnan(effective_sample_size([math.nan, math.nan]))


@pytest.mark.parametrize("target", [1.5, 4.0, 12.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_temperature_for_an_ess_gives_that_ess_at_any_reward_scale(target, scale):
    rewards = scale * np.random.default_rng(0).standard_normal(16)
    lam = temperature_for_ess(rewards, target)
    assert effective_sample_size(importance_weights(rewards, lam)) == pytest.approx(target, rel=1e-6)


def test_equal_rewards_have_a_temperature_too():
    assert temperature_for_ess([2.0, 2.0, math.nan], 1.0) > 0


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        importance_weights([1.0], 0.0)
