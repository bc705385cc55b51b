"""Methods that score unfinished responses, each against a transcription on the toy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from toy_world import ToyPolicy, drive, prompt, scores_of

from aisp_ray.methods.base import fit_budget, planned_cost
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.methods.blockwise import Blockwise
from aisp_ray.methods.particle_filter import ParticleFilter
from aisp_ray.methods.speculative_rejection import SpeculativeRejection
from aisp_ray.rng import generator
from aisp_ray.types import Rollout, Rollouts, Scores

METHODS = (Blockwise, ParticleFilter, SpeculativeRejection)


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids))) / 4


def is_open(ids, limit=6):
    return ids[-1] != 0 and len(ids) < limit


@pytest.mark.parametrize("cls", METHODS)
def test_a_proposal_continues_prefixes_by_a_block(cls):
    policy = ToyPolicy(max_new_tokens=6)
    method = cls(n=8, block=2, max_new_tokens=5)
    state, history = drive(method, policy, reward)
    assert [proposal.max_new_tokens for proposal, *_ in history] == [2, 4, 5][: len(history)]
    for k, (proposal, rollouts, _, _) in enumerate(history):
        assert {len(prefix) for prefix in proposal.prefixes} == {2 * k}
        assert all(item.num_generated_tokens <= 2 for item in rollouts.items)
    assert not is_open(state.best.token_ids, 5)


@pytest.mark.parametrize("cls", METHODS)
def test_the_planned_cost_is_that_of_a_policy_that_never_ends(cls):
    method = cls(n=8, block=2, max_new_tokens=5)
    _, history = drive(method, ToyPolicy(max_new_tokens=6, ends=False), reward)
    cost = planned_cost(method, 6)
    assert cost["samples"] == sum(len(rollouts.items) for _, rollouts, _, _ in history)
    assert cost["generated_tokens"] == sum(rollouts.num_generated_tokens for _, rollouts, _, _ in history)


def test_a_budget_in_tokens_sets_the_number_of_responses():
    assert fit_budget(Blockwise(n=4, block=8, max_new_tokens=64), "generated_tokens", 64 * 100, 128).n == 100
    assert fit_budget(ParticleFilter(n=4, max_new_tokens=64), "generated_tokens", 256 * 64, 64).n == 256
    with pytest.raises(ValueError, match="no multiple of one n of ParticleFilter, 64"):
        fit_budget(ParticleFilter(max_new_tokens=64), "generated_tokens", 100, 64)


@pytest.mark.parametrize("beams", [1, 2])
def test_blockwise_continues_the_best(beams):
    policy, method = ToyPolicy(max_new_tokens=6, seed=3), Blockwise(n=8, beams=beams, block=2, max_new_tokens=6)
    state, history = drive(method, policy, reward)
    kept, finished = [], []
    for proposal, rollouts, _, _ in history:
        live = [ids for ids in kept if is_open(ids)]
        assert proposal.prefixes == (tuple(ids for ids in live for _ in range(8 // beams)) or ((),) * 8)
        drawn = [item.token_ids for item in rollouts.items]
        finished += [ids for ids in drawn if not is_open(ids)]
        kept = sorted([ids for ids in kept if not is_open(ids)] + drawn, key=lambda ids: -reward(ids))[:beams]
    assert not any(is_open(ids) for ids in kept)
    assert state.best.reward == max(map(reward, finished))


def test_blockwise_over_the_whole_response_is_best_of_n():
    policy = ToyPolicy(max_new_tokens=6)
    one, _ = drive(Blockwise(n=16, block=6, max_new_tokens=6, temperature=1.0), policy, reward)
    two, _ = drive(BestOfN(n=16, kappa=1, temperature=1.0, top_p=1.0), policy, reward)
    assert one.best == two.best


def test_speculative_rejection_drops_the_worst_share_after_each_block():
    policy = ToyPolicy(max_new_tokens=6, seed=1)
    method = SpeculativeRejection(n=16, reject=0.5, block=2, max_new_tokens=6)
    state, history = drive(method, policy, reward)
    kept, everything = [()] * 16, []
    for proposal, rollouts, _, info in history:
        assert list(proposal.prefixes) == [ids for ids in kept if not ids or is_open(ids)]
        drawn = [item.token_ids for item in rollouts.items]
        everything += drawn
        pool = sorted([ids for ids in kept if ids and not is_open(ids)] + drawn, key=lambda ids: -reward(ids))
        size = max(1, math.floor(0.5 * len(pool) + 0.5))
        kept, dropped = pool[:size], pool[size:]
        assert info["tokens_saved"] == sum(6 - len(ids) for ids in dropped if is_open(ids))
    assert state.best.reward == max(reward(ids) for ids in everything if not is_open(ids))


def test_without_rejection_it_is_best_of_n_with_as_many_tokens():
    policy = ToyPolicy(max_new_tokens=6, ends=False)
    _, history = drive(SpeculativeRejection(n=8, reject=0.0, block=2, max_new_tokens=6), policy, reward)
    assert sum(rollouts.num_generated_tokens for _, rollouts, _, _ in history) == 48
    assert all(info["tokens_saved"] == 0 for *_, info in history)


class Quick(ToyPolicy):
    """The toy at temperature 1 with its distributions kept: the same law, other draws, much faster."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.known = {}

    def rollout(self, prompt, proposal, seed):
        draw = np.random.default_rng((seed, proposal.iteration))
        items = []
        for i, prefix in enumerate(proposal.prefixes):
            ids = list(prefix)
            while len(ids) < proposal.max_new_tokens and not (ids and ids[-1] == 0):
                if (key := tuple(ids)) not in self.known:
                    self.known[key] = self.head(self.prelogit(ids).double()).softmax(-1).numpy().cumsum()
                ids.append(min(int(np.searchsorted(self.known[key], draw.random(), side="right")), 4))
            reason = "stop" if ids[-1] == 0 else "length"
            items.append(Rollout(i, "", tuple(ids), reason, len(ids) - len(prefix)))
        return Rollouts(proposal.iteration, tuple(items), 1)


def exact_normaliser(policy, temperature):
    return sum(p * math.exp(reward(ids) / temperature) for ids, p in policy.responses())


@pytest.mark.parametrize("resample_below", [0.01, 0.7, 1.0])
def test_the_normalising_constant_is_unbiased(resample_below):
    """Z averages to E_pi[exp(r / lambda)], though the rewards of unfinished texts mislead."""
    policy = Quick(max_new_tokens=3, seed=1)
    method = ParticleFilter(
        n=4, block=1, max_new_tokens=3, temperature=1.0, reward_temperature=1.0, resample_below=resample_below
    )
    misleading = lambda ids: reward(ids) if not is_open(ids, 3) else -reward(ids)  # noqa: E731
    found = []
    for seed in range(1000):
        _, history = drive(method, policy, misleading, seed)
        found.append(math.exp(history[-1][3]["log_normaliser"]))
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(exact_normaliser(policy, 1.0), abs=4 * error)
    assert error < 0.1 * np.mean(found), "the test needs an estimate that could be wrong"


def test_the_particle_filter_is_the_textbooks():
    policy = ToyPolicy(max_new_tokens=6, seed=4)
    method = ParticleFilter(n=8, block=2, max_new_tokens=6, reward_temperature=0.5, resample_below=0.6)
    state, history = drive(method, policy, reward)
    particles, old, w, log_z, resampled = [()] * 8, np.zeros(8), np.ones(8), 0.0, 0
    for k, (proposal, rollouts, _, info) in enumerate(history):
        live = [i for i, ids in enumerate(particles) if not ids or is_open(ids)]
        assert list(proposal.prefixes) == [particles[i] for i in live]
        for i, item in zip(live, rollouts.items, strict=True):
            particles[i] = item.token_ids
        r = np.array([reward(ids) for ids in particles])
        w, old = w * np.exp((r - old) / 0.5), r
        ess = w.sum() ** 2 / (w**2).sum()
        assert info["ess"] == pytest.approx(ess)
        assert info["log_normaliser"] == pytest.approx(log_z + math.log(w.mean()))
        if ess < 0.6 * 8 and any(is_open(ids) for ids in particles):
            u = (generator(0, prompt().prompt_id, "particle filter", k).random() + np.arange(8)) / 8
            ancestors = np.searchsorted(np.cumsum(w) / w.sum(), u, side="right")
            particles, old = [particles[i] for i in ancestors], old[ancestors]
            log_z, w, resampled = log_z + math.log(w.mean()), np.ones(8), resampled + 1
    assert resampled > 0
    assert [one.token_ids for one in state.particles] == particles


def test_the_latest_reward_alone_can_weigh_and_choose():
    policy = ToyPolicy(max_new_tokens=6, seed=4)
    method = ParticleFilter(n=8, block=2, max_new_tokens=6, weights="latest", resample_below=1.0, select="weight")
    state, history = drive(method, policy, reward)
    assert "log_normaliser" not in history[0][3]
    assert state.best in state.particles
    w = np.exp(np.array(history[0][2].rewards) / 0.3)
    assert history[0][3]["ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_a_particle_without_a_reward_is_not_continued():
    policy = ToyPolicy(max_new_tokens=6, ends=False)
    method = ParticleFilter(n=4, block=2, max_new_tokens=6, resample_below=1.0)
    state = method.init(prompt(), 0)
    rollouts = policy.rollout(prompt(), method.ask(state), 0)
    rewards = scores_of(rollouts, reward).rewards
    state, _ = method.tell(state, rollouts, Scores((math.nan, *rewards[1:])))
    assert all(one.particle != 0 for one in state.particles)
    state, _ = method.tell(state, policy.rollout(prompt(), method.ask(state), 0), Scores((math.nan,) * 4))
    assert state.done
    assert math.isfinite(state.best.reward)


@pytest.mark.parametrize(
    ("cls", "settings", "words"),
    [
        (Blockwise, {"n": 8, "beams": 3}, "must divide n=8"),
        (Blockwise, {"block": 0}, "at least 1 token"),
        (ParticleFilter, {"weights": "all"}, "increments, latest"),
        (ParticleFilter, {"resample_below": 0.0}, "share in"),
        (ParticleFilter, {"temperature": 0.0}, "need sampling"),
        (SpeculativeRejection, {"reject": 1.0}, "share in"),
    ],
)
def test_bad_settings_say_what_is_allowed(cls, settings, words):
    with pytest.raises(ValueError, match=words):
        cls(**settings)
