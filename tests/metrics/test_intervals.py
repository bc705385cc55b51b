"""Bootstrap intervals and paired comparisons, against a plain loop and against theory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aisp_ray.metrics.base import estimate, estimates, resampled_means
from aisp_ray.metrics.paired import paired
from aisp_ray.rng import generator


def test_resampled_means_equal_a_plain_loop_over_the_same_draws():
    values = generator("test").normal(size=(7, 2))
    fast = resampled_means(values, seed=3, num_resamples=300)
    plain = []
    for start, size in ((0, 250), (250, 50)):
        draws = generator("bootstrap", 3, 7, start).integers(0, 7, size=(size, 7))
        plain += [values[row].mean(axis=0) for row in draws]
    np.testing.assert_allclose(fast, plain, rtol=1e-12)


def test_an_interval_is_that_of_the_normal_approximation_at_many_prompts():
    values = generator("many").normal(2.0, 3.0, 2000)
    found = estimate(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    assert found.half_width == pytest.approx(half, rel=0.04)
    assert found.low < found.mean < found.high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for trial in range(200):
        found = estimate(generator("cover", trial).exponential(1.0, 60), seed=trial, num_resamples=1000)
        covered += found.low <= 1.0 <= found.high
    assert 0.87 <= covered / 200 <= 0.98


def test_missing_values_are_left_out_of_their_own_column_only():
    values = np.array([[1.0, 5.0], [math.nan, 6.0], [3.0, 7.0]])
    first, second = estimates(values)
    assert (first.mean, first.count, second.mean, second.count) == (2.0, 2, 6.0, 3)


def test_no_value_is_nan_and_one_value_has_no_interval():
    assert math.isnan(estimate(np.array([math.nan])).mean)
    assert estimate(np.array([])).count == 0
    single = estimate(np.array([2.5]))
    assert (single.mean, single.count) == (2.5, 1)
    assert math.isnan(single.low)


def test_the_seed_names_the_draws():
    values = generator("named").normal(size=50)
    assert estimate(values, seed=1) == estimate(values, seed=1)
    assert estimate(values, seed=1).low != estimate(values, seed=2).low


def test_wins_ties_and_losses_are_counted_and_missing_pairs_are_not():
    found = paired(np.array([0.5, -0.2, 0.0, 1e-9, math.nan]))
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert found.difference.count == 4
    assert found.win_rate == pytest.approx(0.5)
    assert math.isnan(paired(np.array([math.nan])).win_rate)
