"""The search against functions in place of models."""

import asyncio
import math

import pytest

from aisp_ray.config import ConfigError
from aisp_ray.rng import generator
from aisp_ray.tune.propose import ListProposer, make_proposer
from aisp_ray.tune.search import Rules, best_trial, run_search
from aisp_ray.tune.space import Space
from aisp_ray.tune.trial import Trial

SPACE = Space(method="aisp", keys={"x": {"low": 0.0, "high": 10.0}, "kind": ["a", "b"]})


class Maker:
    """A "method" is its settings."""

    def make(self, settings):
        if settings["x"] > 9:
            raise ConfigError("x is above 9")
        return settings


def value(settings, prompt):
    return generator(prompt).normal() - (settings["x"] - 4) ** 2 - (settings["kind"] == "b")


class Measure:
    def __init__(self):
        self.asked = 0

    async def __call__(self, methods, first, last):
        self.asked += len(methods) * (last - first)
        return {number: [value(s, prompt) for prompt in range(first, last)] for number, s in methods.items()}


def searched(search, trials=None, rules=None, space=SPACE, seed=0):
    rules = rules or Rules(16)
    preset = Trial(0, {"x": 8.0, "kind": "a"}, {}, state="complete")
    preset.values = [value(preset.settings, prompt) for prompt in range(rules.num_prompts)]
    measure = Measure()
    proposer = make_proposer(search, space, trials, seed, preset)
    return asyncio.run(run_search(preset, proposer, Maker(), measure, rules)), measure


def facts(trials):
    return [(t.number, tuple(t.settings.items()), t.state, tuple(t.values)) for t in trials]


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_a_search_is_a_function_of_its_seed(search):
    first, again, other = (searched(search, 20, seed=seed)[0] for seed in (3, 3, 4))
    assert facts(first) == facts(again)
    assert facts(first) != facts(other)
    assert len(first) == 21


def test_a_search_finds_the_peak_and_stops_bad_trials_early():
    trials, measure = searched("tpe", 40)
    best = best_trial(trials)
    assert abs(best.settings["x"] - 4) < 0.5
    assert best.settings["kind"] == "a"
    stopped = [trial for trial in trials if trial.state == "stopped"]
    assert stopped
    assert all(trial.num_seen in (4, 8) for trial in stopped)
    assert measure.asked == sum(trial.num_seen for trial in trials[1:]) < 0.6 * 16 * 40


def test_only_a_complete_trial_can_win():
    trials = [
        Trial(0, {}, None, state="complete", values=[1.0, 1.0]),
        Trial(1, {}, None, state="stopped", values=[9.0]),
        Trial(2, {}, None, state="complete", values=[1.0, 1.0]),
    ]
    assert best_trial(trials).number == 0
    with pytest.raises(ValueError, match="no setting has a finite objective"):
        best_trial([Trial(0, {}, None, state="complete", values=[math.nan])])


def test_a_setting_that_fails_where_the_preset_does_not_cannot_win():
    preset, failing, other = (
        Trial(i, {}, None, state="complete", values=values)
        for i, values in enumerate(([1, 2, 3, 2], [math.nan, math.nan, 2.5, math.nan], [2, 2, 3, 2]))
    )
    assert failing.mean() > preset.mean()
    assert best_trial([preset, failing]) is preset
    assert best_trial([preset, failing, other]) is other


def test_means_are_compared_on_the_prompts_of_the_preset():
    preset = Trial(0, {}, None, state="complete", values=[math.nan, 2.0, 3.0])
    better = Trial(1, {}, None, state="complete", values=[-9.0, 2.5, 3.0])
    assert best_trial([preset, better]) is better
    assert better.score(preset) == 2.75


def test_a_sampler_learns_nothing_from_the_mean_of_a_setting_that_fails():
    preset = Trial(0, {"x": 8.0, "kind": "a"}, {}, state="complete", values=[1.0, 2.0])
    proposer = make_proposer("random", SPACE, 2, 0, preset)
    trials = [
        Trial(i, s, {}, state="complete", values=v)
        for i, (s, v) in enumerate(zip(proposer.ask(2), ([9.0, math.nan], [1.0, 3.0]), strict=True), start=1)
    ]
    proposer.tell(trials)
    assert [trial.value for trial in proposer._study.trials] == [1.5, None, 2.0]


def test_settings_the_method_refuses_are_trials_without_values():
    trials, _ = searched("grid", space=Space(method="aisp", keys={"x": [1.0, 9.5], "kind": ["a"]}))
    assert [trial.state for trial in trials] == ["complete", "complete", "invalid"]
    assert trials[2].reason == "x is above 9"
    assert trials[2].values == []


def test_a_grid_measures_every_setting_on_every_prompt_and_the_preset_once():
    space = Space(method="aisp", keys={"x": [1.0, 4.0, 8.0], "kind": ["a", "b"]})
    trials, measure = searched("grid", rules=Rules(8, stop="none"), space=space)
    assert len(trials) == 6
    assert len({tuple(trial.settings.items()) for trial in trials}) == 6
    assert measure.asked == 5 * 8
    assert best_trial(trials).settings == {"x": 4.0, "kind": "a"}


def test_no_setting_is_tried_twice_and_a_small_space_ends_the_search():
    space = Space(method="aisp", keys={"x": [1.0, 2.0, 3.0], "kind": ["a", "b"]})
    trials, _ = searched("tpe", 50, space=space)
    tried = [tuple(trial.settings.items()) for trial in trials]
    assert len(set(tried)) == len(tried) <= 7


def test_trials_of_a_batch_stop_by_all_earlier_ones():
    trials, _ = searched("random", 24, Rules(16, stop="race", batch=4))
    leader = best_trial(trials)
    for trial in trials:
        if trial.state == "stopped":
            assert trial.mean() < leader.mean(trial.num_seen)


def test_a_list_is_handed_out_in_order():
    proposer = ListProposer([{"x": i} for i in range(5)])
    assert [each["x"] for each in proposer.ask(3)] == [0, 1, 2]
    assert [each["x"] for each in proposer.ask(3)] == [3, 4]
    assert proposer.ask(3) == []


def test_a_preset_between_whole_numbers_is_no_failure():
    space = Space(method="aisp", keys={"x": {"low": 0, "high": 10}, "kind": ["a", "b"]})
    for x, told in ((0.5, 0), (8.0, 1)):
        preset = Trial(0, {"x": x, "kind": "a"}, {}, state="complete", values=[1.0])
        assert len(make_proposer("tpe", space, 4, 0, preset)._study.trials) == told
