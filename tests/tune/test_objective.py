"""What a row counts for."""

import math

import pytest

from aisp_ray.tune.objective import make_objective

ROW = {
    "status": "ok",
    "reward": 3.0,
    "num_samples_seen": [4, 8, 16],
    "reward_best": [1.0, 2.0, 3.0],
    "judge_names": ["gold"],
    "judge_rewards": [7.0],
}


def test_the_reward_and_the_reward_on_the_way():
    assert make_objective("reward", [])(ROW) == 3.0
    assert [make_objective(f"reward@{n}", [])(ROW) for n in (4, 7, 8, 100)] == [1.0, 1.0, 2.0, 3.0]
    assert math.isnan(make_objective("reward@3", [])(ROW))


def test_the_area_weighs_each_sample_alike():
    assert make_objective("area", [])(ROW) == pytest.approx((4 * 1 + 4 * 2 + 8 * 3) / 16)


def test_a_judge_counts_where_it_was_asked():
    assert make_objective("judge.gold", ["gold"])(ROW) == 7.0
    with pytest.raises(ValueError, match="judges="):
        make_objective("judge.gold", [])


def test_an_error_row_has_no_value():
    row = {**ROW, "status": "error", "reward": None}  # it failed after some iterations
    for name in ("reward", "reward@4", "area", "judge.gold"):
        assert math.isnan(make_objective(name, ["gold"])(row))


@pytest.mark.parametrize("name", ["rewards", "reward@", "reward@x", "reward@0", ""])
def test_an_unknown_objective_is_refused(name):
    with pytest.raises(ValueError, match="no such measure"):
        make_objective(name, [])
