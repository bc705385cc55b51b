"""Who goes on after a rung."""

import math

import pytest

from aisp_ray.tune.rungs import rung_sizes, survivors
from aisp_ray.tune.trial import Trial


def trials(*values):
    return [Trial(i, {"x": i}, None, values=list(each)) for i, each in enumerate(values)]


def numbers(found):
    return [trial.number for trial in found]


def test_rungs_double_and_end_at_all_prompts():
    assert rung_sizes(32, 4) == (4, 8, 16, 32)
    assert rung_sizes(20, 8) == (8, 16, 20)
    assert rung_sizes(8, 8) == (8,)
    assert rung_sizes(4, 8) == (4,)


def test_halving_keeps_the_better_half_of_all_that_came_this_far():
    before, *batch = trials([5, 5], [1, 1], [2, 2], [6, 6])
    assert numbers(survivors("halving", batch, [before, *batch], 2)) == [3]
    assert numbers(survivors("halving", batch, batch, 2)) == [2, 3]
    assert numbers(survivors("none", batch, [before, *batch], 2)) == [1, 2, 3]


def test_halving_compares_the_same_first_prompts():
    long, short = trials([0, 0, 100, 100], [1, 1])
    assert numbers(survivors("halving", [short], [long, short], 2)) == [1]


def test_a_race_drops_only_what_is_clearly_behind():
    leader, near, far = trials([1.0, 2.0, 3.0, 4.0], [1.2, 1.7, 3.1, 3.9], [0.5, 1.4, 2.6, 3.5])
    assert numbers(survivors("race", [leader, near, far], [leader, near, far], 4)) == [0, 1]


def test_a_race_is_paired_so_that_prompt_levels_do_not_hide_a_gap():
    leader, behind = trials([10.0, 20.0, 30.0], [9.9, 19.89, 29.9])
    assert numbers(survivors("race", [behind], [leader, behind], 3)) == []


def test_a_race_is_fair_to_failed_prompts():
    leader, other = trials([1.0, math.nan, 1.0, 1.0], [1.0, 5.0, math.nan, 1.0])
    assert numbers(survivors("race", [leader, other], [leader, other], 4)) == [0, 1]


def test_failing_on_bad_prompts_is_no_way_up():
    nan = math.nan
    preset, failing, other = trials([1, 2, 3, 2], [nan, nan, 3.5, nan], [1, 2, 3, 1.9])
    assert numbers(survivors("halving", [failing, other], [preset, failing, other], 4)) == []
    assert numbers(survivors("halving", [failing, preset], [preset, failing], 4)) == [0]
    leads, behind = trials([1, 2, 3, 2], [nan, nan, 3.5, 2.5])
    close = Trial(2, {}, None, values=[1, 2, 3, 2.2])
    assert numbers(survivors("race", [close], [leads, behind, close], 4)) == [2]


def test_prompts_on_which_the_preset_fails_end_no_rung():
    preset, batch = trials([math.nan, math.nan, 1.0], [2.0, 1.0])
    for rule in ("halving", "race"):
        assert numbers(survivors(rule, [batch], [preset, batch], 2)) == [1]


def test_nothing_goes_on_without_a_value():
    (hopeless,) = trials([math.nan, math.nan])
    for rule in ("halving", "race"):
        assert survivors(rule, [hopeless], [hopeless], 2) == []


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match='Did you mean "race"'):
        survivors("rase", [], [], 1)
