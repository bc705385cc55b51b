"""The KL estimators against enumeration and against each other."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.metrics import kl

sys.path.insert(0, str(Path(__file__).parent.parent / "methods"))
from toy_world import ToyPolicy


def test_token_kl_on_steered_prefixes_averages_to_the_kl_of_sequences():
    """Sum over all responses of p_u(y) * (token KL along y) = KL(p_u | p_0) by enumeration."""
    policy = ToyPolicy(max_new_tokens=3, seed=1)
    log = WeightLog((WeightEntry(0, (0.7, 0.3), (3, 3), 0.9),))
    u = log.fold(policy, 3)
    responses = [ids for ids, _ in policy.responses()]

    def log_probability(ids, control):
        rows = (policy.head(policy.replay([ids])[0] + control[: len(ids)])).double().log_softmax(-1)
        return float(sum(rows[t, y] for t, y in enumerate(ids)))

    p = np.exp([log_probability(ids, u) for ids in responses])
    exact = sum(pi * (math.log(pi) - log_probability(ids, 0 * u)) for pi, ids in zip(p, responses, strict=True))
    assert float(p @ kl.token(policy, log, 3, responses)) == pytest.approx(exact, rel=1e-5)
    assert exact > 0.05


def test_no_control_is_no_divergence_and_the_horizon_ends_it():
    policy = ToyPolicy()
    log = WeightLog((WeightEntry(0, (1.0,), (4,), 0.9),))
    assert kl.token(policy, WeightLog(), 4, [(1, 2, 3)]) == [0.0]
    short, long = kl.token(policy, log, 1, [(1, 2, 3)])[0], kl.token(policy, log, 3, [(1, 2, 3)])[0]
    assert 0 < short < long


def test_the_gaussian_kl_is_that_of_the_controls():
    u, sigma = torch.randn(4, 3, dtype=torch.float64), 0.6
    q = torch.distributions.Normal(u, sigma)
    p = torch.distributions.Normal(torch.zeros_like(u), sigma)
    exact = float(torch.distributions.kl_divergence(q, p).sum())
    assert kl.gaussian(float(u.norm()), sigma) == pytest.approx(exact)
    assert math.isnan(kl.gaussian(1.0, 0.0))
