"""Spaces: values, ranges, grids, equal budgets."""

import math

import pytest

from aisp_ray import config
from aisp_ray.config import ConfigError
from aisp_ray.tune.space import Space, Workbench, make_axis

AISP = {"_target_": "aisp_ray.methods.aisp.Aisp", "n": 8, "kappa": 8, "sigma": 0.5}


def test_a_list_is_its_own_grid_and_keeps_its_order():
    assert make_axis("alpha", [1, 0.5, 0]).grid() == (1, 0.5, 0)
    assert make_axis("alpha", [0, 0.5, 1]).ordered
    assert not make_axis("alpha", [1, 0.5, 0]).ordered
    assert not make_axis("adapt", [False, True]).ordered


def test_a_logarithmic_range_has_a_geometric_grid_with_both_ends():
    grid = make_axis("sigma", {"low": 0.1, "high": 1.6, "log": True, "points": 5}).grid()
    assert grid == pytest.approx((0.1, 0.2, 0.4, 0.8, 1.6))


def test_a_stepped_range_stays_on_its_raster():
    assert make_axis("horizon", {"low": 8, "high": 64, "step": 8, "points": 3}).grid() == (8, 40, 64)
    assert make_axis("n", {"low": 1, "high": 3}).grid() == (1, 2, 3)
    assert all(isinstance(value, int) for value in make_axis("n", {"low": 1, "high": 3}).grid())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "give a list of values or"),
        ([], "at least one value"),
        ([1, 1], "each once"),
        ({"low": 1}, "needs low and high"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "low above 0"),
        ({"low": 0, "hihg": 1}, 'Did you mean "high"?'),
        ({"low": 0, "high": 1, "step": 0}, "step is 0"),
        ({"low": 0, "high": 1, "points": 0}, "points is 0"),
    ],
)
def test_what_is_no_axis_is_refused_in_a_sentence(given, said):
    with pytest.raises(ValueError, match=r"keys\.sigma") as refused:
        Space(method="aisp", keys={"sigma": given})
    assert said in str(refused.value)


def test_a_space_without_method_or_keys_or_with_both_budget_keys_is_refused():
    with pytest.raises(ValueError, match="method must be set"):
        Space(keys={"n": [1]})
    with pytest.raises(ValueError, match="keys must be set"):
        Space(method="aisp")
    with pytest.raises(ValueError, match="search one of them"):
        Space(method="aisp", keys={"n": [1], "kappa": [1]})
    with pytest.raises(ValueError, match=r"set\.n has no effect"):
        Space(method="aisp", keys={"n": [1]}, set={"n": 2})


def test_the_grid_is_every_combination_and_a_sweep_moves_one_key():
    space = Space(method="aisp", keys={"sigma": [0.1, 0.5], "alpha": [0, 0.9, 1]})
    assert len(space.grid()) == 6
    assert space.grid()[1] == {"sigma": 0.1, "alpha": 0.9}
    swept = space.one_at_a_time({"sigma": 0.5, "alpha": 1})
    assert len(swept) == 4  # the centre once
    assert all((each["sigma"] == 0.5) or (each["alpha"] == 1) for each in swept)


@pytest.mark.parametrize("key", ["n", "kappa"])
def test_every_setting_has_the_same_budget(key):
    bench = Workbench(Space(method="aisp", samples=64, keys={key: [1, 4, 16, 64]}), AISP)
    assert bench.centre() == {key: 8}
    for settings in bench.space.grid():
        method = bench.make(settings)
        assert getattr(method, key) == settings[key]
        assert method.num_samples == 64


def test_a_setting_off_the_budget_is_refused():
    for key in ("n", "kappa"):
        bench = Workbench(Space(method="aisp", samples=64, keys={key: [5]}), AISP)
        with pytest.raises(ConfigError, match="64"):
            bench.make({key: 5})


def test_without_a_budget_the_preset_decides():
    assert Workbench(Space(method="aisp", keys={"n": [4]}), AISP).make({"n": 4}).kappa == 16


def test_an_unknown_key_of_the_method_is_named():
    with pytest.raises(ConfigError, match='Did you mean "sigma"'):
        Workbench(Space(method="aisp", keys={"sigme": [1]}), AISP).centre()


@pytest.mark.parametrize("name", [name for name in config.choices("tune") if name != "any"])
def test_every_space_builds_and_its_method_takes_its_grid(name):
    assert config.choices("tune")[name]
    space = config.build(config.read_choice("tune", name), "tune")
    bench = Workbench(space, config.read_choice("method", space.method))
    bench.centre()
    methods = [bench.make(settings) for settings in space.grid()]
    assert {method.num_samples for method in methods} == {bench.samples()}
    assert math.prod(len(axis.grid()) for axis in space.axes()) == len(methods)


def test_a_range_is_of_whole_numbers_where_the_method_s_field_is():
    target = AISP["_target_"]
    space = Space(
        method="aisp", keys={"sigma": {"low": 0, "high": 2}, "horizon": {"low": 8.0, "high": 64.0, "step": 8.0}}
    )
    sigma, horizon = space.typed(target).axes()
    assert not sigma.whole
    assert sigma.grid() == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert horizon.whole
    assert all(isinstance(value, int) for value in horizon.grid())
    with pytest.raises(ConfigError, match=r"tune\.keys\.horizon\.low=7\.5: it must be a whole number"):
        Space(method="aisp", keys={"horizon": {"low": 7.5, "high": 64}}).typed(target)
    unknown = Space(method="aisp", keys={"sigme": {"low": 0, "high": 2}, "alpha": [0, 1]})
    assert unknown.typed(target) == unknown
