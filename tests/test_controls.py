"""The mean as a log of weights: folding, continuing from a parent, given prefixes, dead positions."""

from __future__ import annotations

import numpy as np
import torch

from aisp_ray.controls.weight_log import WeightEntry, WeightLog


class Source:
    dim, device = 3, torch.device("cpu")

    def noise(self, iteration, particles, horizon, start=0):
        draw = np.random.default_rng(iteration).standard_normal((8, 6, 3))  # slices of one array, as by name
        return torch.from_numpy(draw).float()[list(particles), start:horizon]


def entry(iteration, **kw):
    weights = np.random.default_rng(100 + iteration).dirichlet([1.0] * 8)
    return WeightEntry(iteration, tuple(weights), (6,) * 8, 0.5, **kw)


def test_going_on_from_the_parent_equals_folding_from_the_start():
    log = WeightLog(tuple(entry(k) for k in range(4)))
    parent = log.parent()
    torch.testing.assert_close(
        log.advance(parent.fold(Source(), 6), Source(), 6), log.fold(Source(), 6), rtol=0, atol=0
    )
    assert WeightLog().parent() is None
    assert WeightLog().fold(Source(), 6).abs().sum() == 0


def test_a_shorter_horizon_is_a_slice():
    log = WeightLog(tuple(entry(k) for k in range(3)))
    torch.testing.assert_close(log.fold(Source(), 2), log.fold(Source(), 6)[:2])


def test_one_update_is_the_weighted_mean_of_the_particles():
    log = WeightLog((entry(0), entry(1)))
    mean = WeightLog(log.entries[:1]).fold(Source(), 6)
    w = torch.tensor(log.entries[1].weights)
    v = mean + 0.5 * Source().noise(1, range(8), 6)
    expected = torch.einsum("n,ntd->td", w, v.double())
    torch.testing.assert_close(log.fold(Source(), 6).double(), expected, atol=1e-6, rtol=0)


def test_positions_of_a_given_prefix_keep_their_mean():
    first, second = entry(0), entry(1)
    later = WeightLog((first, entry(1, start=4))).fold(Source(), 6)
    torch.testing.assert_close(later[:4], WeightLog((first,)).fold(Source(), 6)[:4], atol=0, rtol=0)
    torch.testing.assert_close(later[4:], WeightLog((first, second)).fold(Source(), 6)[4:], atol=0, rtol=0)


def test_positions_without_a_living_particle_keep_their_mean():
    first = entry(0)
    second = WeightEntry(1, (0.5, 0.5, *([0.0] * 6)), (2, 4, *([6] * 6)), 0.5)
    before, after = WeightLog((first,)).fold(Source(), 6), WeightLog((first, second)).fold(Source(), 6)
    eps = Source().noise(1, [0, 1], 6)
    torch.testing.assert_close(after[:2], before[:2] + 0.25 * (eps[0, :2] + eps[1, :2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(after[2:4], before[2:4] + 0.5 * eps[1, 2:4], atol=1e-6, rtol=0)
    torch.testing.assert_close(after[4:], before[4:])


def test_a_log_is_hashable_so_that_an_engine_can_cache_its_mean():
    assert {WeightLog((entry(0),)): 1}[WeightLog((entry(0),))] == 1
