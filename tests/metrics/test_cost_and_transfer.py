"""Samples to reach a reward, rates, and whether gains carry over to a held-out reward."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aisp_ray.metrics.cost import prompts_reached, rate, samples_to_reach
from aisp_ray.metrics.overoptimisation import rank_correlation, transfer
from aisp_ray.rng import generator

SAMPLES = np.array([4.0, 8.0, 12.0])


def test_samples_to_reach_is_the_first_that_gets_there():
    assert samples_to_reach(SAMPLES, np.array([0.1, 0.5, 0.5]), 0.5) == 8
    assert math.isnan(samples_to_reach(SAMPLES, np.array([0.1, 0.5, 0.5]), 0.6))
    assert math.isnan(samples_to_reach(SAMPLES, np.array([0.1, 0.5, 0.5]), math.nan))


def test_prompts_without_a_target_are_not_counted():
    best = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    share, median = prompts_reached(np.tile(SAMPLES, (4, 1)), best, np.array([1.0, 1.0, 1.0, math.nan]))
    assert (share, median) == (pytest.approx(2 / 3), 10.0)
    assert all(map(math.isnan, prompts_reached(np.tile(SAMPLES, (4, 1)), best, np.full(4, math.nan))))


def test_a_rate_is_a_ratio_of_sums_and_unknown_without_time():
    assert rate(np.array([10.0, 30.0, 99.0]), np.array([1.0, 3.0, math.nan])) == 10.0
    assert math.isnan(rate(np.array([10.0]), np.array([0.0])))


def test_rank_correlation_is_that_of_pandas_with_ties():
    import pandas as pd

    x = generator("x").integers(0, 5, 40).astype(float)
    y = x + generator("y").normal(0, 2, 40)
    plain = pd.DataFrame({"x": x, "y": y}).corr(method="spearman").loc["x", "y"]
    assert rank_correlation(x, y) == pytest.approx(plain)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
    assert math.isnan(rank_correlation(np.arange(2.0), np.arange(2.0)))


def test_transfer_shows_a_reward_that_is_exploited():
    gains = generator("gains").uniform(0, 2, 200)
    exploited = 0.5 * gains * (1.2 - gains)  # rises, then falls
    found = transfer(gains, exploited)
    held_out = [bin_[1] for bin_ in found.bins]
    assert held_out[0] > 0 > held_out[-1]
    assert sum(bin_[2] for bin_ in found.bins) == 200
    assert found.rank_correlation < 0


def test_transfer_leaves_out_prompts_that_lack_either_reward():
    found = transfer(np.array([1.0, math.nan, 2.0]), np.array([1.0, 1.0, math.nan]))
    assert found.optimised.count == 1
    assert found.bins == ()
