"""The mean as a log of weights: folding, going on from a parent, scales, antithetic pairs, dead positions."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from aisp_ray.controls.weight_log import Elite, WeightEntry, WeightLog, signed_noise


class Source:
    dim, device = 3, torch.device("cpu")

    def noise(self, iteration, particles, horizon):
        draw = np.random.default_rng(iteration).standard_normal((8, 6, 3))  # slices of one array, as by name
        return torch.from_numpy(draw).float()[list(particles), :horizon]


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


def test_one_update_is_the_weighted_mean_of_scaled_particles():
    scales = tuple(np.linspace(0, 1, 8)), tuple(np.linspace(1, 0, 8))
    log = WeightLog((entry(0), entry(1, step_size=0.3, mean_scales=scales[0], noise_scales=scales[1])))
    mean = WeightLog(log.entries[:1]).fold(Source(), 6)
    w = torch.tensor(log.entries[1].weights)
    v = torch.tensor(scales[0])[:, None, None] * mean + torch.tensor(scales[1])[:, None, None] * 0.5 * Source().noise(
        1, range(8), 6
    )
    expected = mean + 0.3 * (torch.einsum("n,ntd->td", w, v.double()) - mean)
    torch.testing.assert_close(log.fold(Source(), 6).double(), expected.double(), atol=1e-6, rtol=0)


def test_antithetic_pairs_mirror_each_other():
    eps = signed_noise(Source(), 0, range(8), 6, antithetic=True)
    torch.testing.assert_close(eps[0::2], -eps[1::2])
    torch.testing.assert_close(eps[0::2], Source().noise(0, [0, 2, 4, 6], 6))
    even = WeightLog((WeightEntry(0, (0.125,) * 8, (6,) * 8, 0.5, antithetic=True),))
    assert even.fold(Source(), 6).abs().max() < 1e-7, "equal weights on mirrored noise cancel"


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


def test_many_elites_of_many_rounds_cost_no_more_than_the_rounds():
    """Every mean of a fold is computed once, however many elites were drawn around it."""
    rounds, calls = 24, []

    class Counting(Source):
        def noise(self, iteration, particles, horizon):
            calls.append(iteration)
            return super().noise(iteration, particles, horizon)

    entries = [entry(0)]
    for k in range(1, rounds):
        elites = tuple(Elite(j, j % 8, 0.1 / k, 6) for j in range(k))
        entries.append(dataclasses.replace(entry(k), weights=tuple(0.9 * w for w in entry(k).weights), elites=elites))
    log = WeightLog(tuple(entries))
    whole = log.fold(Counting(), 6)
    assert len(calls) == rounds + rounds * (rounds - 1) / 2
    means = [torch.zeros(6, 3)]
    for k in range(1, rounds + 1):
        part = WeightLog(log.entries[:k])
        means.append(part.advance(means[-1], Source(), 6))
    torch.testing.assert_close(means[-1], whole, rtol=0, atol=0)
