"""The expected gain of going on, and AISP's use of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from toy_world import ToyPolicy, drive

from aisp_ray.methods._stopping import PandoraBox, expected_gain
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.rng import generator


@pytest.mark.parametrize(("best", "remaining"), [(2.0, 240), (2.0, 16), (0.0, 1), (3.5, 300)])
def test_the_expected_gain_is_that_of_simulated_normal_draws(best, remaining):
    rewards = generator("rewards").normal(size=16)
    draws = generator("draws", remaining).normal(rewards.mean(), rewards.std(ddof=1), size=(20_000, remaining))
    gains = np.maximum(draws.max(axis=1) - best, 0)
    assert expected_gain(rewards, best, remaining) == pytest.approx(gains.mean(), abs=4 * gains.std() / 141)


def test_the_expected_gain_scales_with_the_rewards_and_ignores_their_origin():
    rewards = [0.0, 1.0, 3.0]
    base = expected_gain(rewards, 3.0, 10)
    assert expected_gain([10 * r for r in rewards], 30.0, 10) == pytest.approx(10 * base)
    assert expected_gain([r + 100 for r in rewards], 103.0, 10) == pytest.approx(base)


def test_more_draws_gain_more_and_none_gain_nothing():
    gains = [expected_gain([0.0, 1.0, 3.0], 3.0, m) for m in (0, 1, 10, 100)]
    assert gains == sorted(gains)
    assert gains[0] == 0.0
    assert expected_gain([1.0, 1.0], 1.0, 100) == 0.0
    assert expected_gain([0.0, 0.1], 50.0, 100) == 0.0


def test_what_has_no_spread_is_unknown():
    assert math.isnan(expected_gain([1.0], 1.0, 5))
    assert math.isnan(expected_gain([math.nan, 1.0], 1.0, 5))


def test_early_stop_needs_a_spread_and_a_reward():
    with pytest.raises(ValueError, match="early_stop needs n above 1"):
        Aisp(n=1, early_stop=0.1)
    with pytest.raises(ValueError, match="early_stop is -1"):
        Aisp(early_stop=-1)


def test_aisp_stops_where_no_gain_is_expected_and_not_before():
    reward = lambda ids: 0.1 * len(ids) + 0.01 * ids[0]  # noqa: E731
    long, full = drive(Aisp(n=4, kappa=12, sigma=2.0, horizon=4), ToyPolicy(), reward)
    for bar, rounds in ((0.005, 12), (0.02, 7), (0.05, 1), (0.2, 1)):
        state, history = drive(Aisp(n=4, kappa=12, sigma=2.0, horizon=4, early_stop=bar), ToyPolicy(), reward)
        assert len(history) == rounds
        gains = [info["expected_gain"] for _, _, _, info in history]
        assert all(gain >= bar for gain in gains[:-1])
        assert gains[-1] < bar
        assert state.done
        assert history[-1][2] == full[len(history) - 1][2]  # up to its stop it is the same search
    assert long.iteration == 12
    assert "expected_gain" not in full[0][3]


@pytest.mark.parametrize(("bar", "rounds"), [(0.0, 1), (0.35, 2), (0.43, 3), (0.62, 12)])
def test_aisp_stops_once_the_best_reward_is_there(bar, rounds):
    reward = lambda ids: 0.1 * len(ids) + 0.01 * ids[0]  # noqa: E731
    _, full = drive(Aisp(n=4, kappa=12, sigma=2.0, horizon=4), ToyPolicy(), reward)
    best = np.maximum.accumulate([max(scores.rewards) for _, _, scores, _ in full])
    state, history = drive(Aisp(n=4, kappa=12, sigma=2.0, horizon=4, stop_at=bar), ToyPolicy(), reward)
    assert len(history) == rounds
    assert len(history) == (int(np.argmax(best >= bar)) + 1 if best[-1] >= bar else 12)
    assert [scores for _, _, scores, _ in history] == [scores for _, _, scores, _ in full[: len(history)]]
    assert state.done


def test_stop_at_is_a_reward():
    with pytest.raises(ValueError, match="stop_at is nan"):
        Aisp(stop_at=math.nan)


def test_the_best_response_survives_the_stop():
    state, history = drive(Aisp(n=4, kappa=12, sigma=0.5, horizon=4, early_stop=1e9), ToyPolicy(), len)
    assert state.iteration == 1
    assert state.best.reward == max(history[0][2].rewards)


def by_heaps(data, total, cost=None, target=None):
    """The authors' loop on rewards that are there already, one at a time: how many are opened."""
    for n in range(20, total):
        v = sorted(math.exp(r) for r in data[:n])
        median, mean = v[n // 2], sum(v[n // 2 :]) / (n - n // 2) - v[n // 2]
        factor = math.sqrt(math.log(n) * math.log(1 / 0.05) / n)
        if target is not None:
            most = median + math.log(total / 3) * mean * (1 + factor)
            if v[-1] / (v[-1] + most) > target:
                return n
            continue
        most = median + math.log(total / 5) * mean * (1 - factor)
        x = np.linspace(median, median + 60 * mean, 200_001)
        density = np.exp(-(x - median) / mean) / mean
        above = np.maximum(x / (x + most) - v[-1] / (v[-1] + most), 0)
        if np.trapezoid(above * density, x) < cost:
            return n
    return total


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("key", "value"), [("accept_at", 0.4), ("accept_at", 0.48), ("accept_cost", 2e-3), ("accept_cost", 2e-4)]
)
def test_pandora_stops_where_the_authors_loop_does(key, value, scale):
    rewards = generator("boxes", scale).normal(size=120) * scale - 3
    wanted = by_heaps(rewards, 120, **{"accept_at": {"target": value}, "accept_cost": {"cost": value}}[key])
    method = BestOfN(n=1, kappa=120, **{key: value})
    state, history = drive(method, Numbered(), lambda ids: float(rewards[ids[0]]))
    assert state.done
    assert len(history) == wanted
    saved = history[-1][3].get("samples_saved")
    assert saved == (120 - wanted if wanted < 120 else None)


class Numbered(ToyPolicy):
    """Response k of the search is the number k."""

    def rollout(self, prompt, proposal, seed):
        rollouts = super().rollout(prompt, proposal, seed)
        first = proposal.iteration * proposal.num_samples
        items = tuple(replace(item, token_ids=(first + i, 0)) for i, item in enumerate(rollouts.items))
        return replace(rollouts, items=items)


def test_acceptance_ignores_the_origin_of_rewards_and_failed_draws():
    rewards = generator("origin").normal(size=40)
    box, moved = PandoraBox.of(rewards), PandoraBox.of([*(rewards + 500), math.nan, -math.inf])
    assert moved.acceptance(100) == pytest.approx(box.acceptance(100))
    assert moved.gain(100) == pytest.approx(box.gain(100))
    assert PandoraBox.of(rewards[:19]) is None
    assert PandoraBox.of(np.ones(20)).acceptance(100) == pytest.approx(0.5, abs=1e-3)


def test_pandoras_keys_are_checked():
    with pytest.raises(ValueError, match=r"accept_at is 0\.5; it lies in \(0, 0\.5\)"):
        BestOfN(accept_at=0.5)
    with pytest.raises(ValueError, match="accept_cost has no effect with 16 samples"):
        BestOfN(n=4, kappa=4, accept_cost=0.001)
