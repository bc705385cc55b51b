"""Hours and money of a run: what counts, what a restart knows of it, and when it is enough."""

import time
from types import SimpleNamespace

import pytest

from aisp_ray.pipeline.spending import Account, Spent
from aisp_ray.plan import Plan, RunSettings

PRICE = {"policy": 2.0, "reward": 1.0, "judges": 0.5}


def pool(*held):
    """Actors by the seconds ago that they got a machine and that they ended (None: they live)."""
    now = time.monotonic()
    at = lambda seconds: None if seconds is None else now - seconds  # noqa: E731
    return SimpleNamespace(
        replicas=[SimpleNamespace(placed=at(placed), ended=None) for placed, ended in held if ended is None],
        gone=[SimpleNamespace(placed=at(placed), ended=at(ended)) for placed, ended in held if ended is not None],
    )


def account(runs=(), **settings):
    manifest = {"runs": [*runs, {"run_id": "now"}]}
    made = Account(RunSettings(price=PRICE, **settings), "out", manifest, "now")
    made.pools = {
        "policy": pool((3600, None), (7200, 3600), (None, None)),  # lives, ended, waits for a machine
        "reward": pool((1800, None)),
        "judges.gold": pool((7200, None)),
    }
    return made, manifest


def test_an_actor_costs_from_its_machine_to_its_end():
    made, _ = account()
    hours = made.spent().actor_hours
    assert hours == pytest.approx({"policy": 2.0, "reward": 0.5, "judges.gold": 2.0}, abs=1e-4)
    assert made.spent().cost(PRICE) == pytest.approx(4.0 + 0.5 + 1.0, abs=1e-3)
    assert made.spent().cost(None) is None
    assert made.in_words() == "4.50 actor hours, cost 5.50"
    assert Account(RunSettings(), "out", {"runs": []}, "now").in_words() == "0.00 actor hours"


def test_a_restart_adds_to_what_earlier_starts_noted_and_replaces_its_own_note():
    earlier = [{"run_id": "a", "seconds": 60.0, "actor_hours": {"policy": 10.0}}, {"run_id": "killed at once"}]
    made, manifest = account(earlier)
    made.note()
    made.note()
    assert manifest["runs"][-1]["actor_hours"]["policy"] == pytest.approx(2.0, abs=1e-3)
    assert made.in_all().actor_hours["policy"] == pytest.approx(12.0, abs=1e-3)
    facts = made.facts()
    assert facts["actor_hours"]["policy"] == pytest.approx(2.0, abs=1e-3)
    assert facts["all_starts"]["starts"] == 3
    assert facts["all_starts"]["cost"] == pytest.approx(25.5, abs=1e-2)
    assert facts["cost"] == pytest.approx(5.5, abs=1e-2)


def test_money_is_limited_over_all_starts_and_time_over_this_one():
    earlier = [{"run_id": "a", "seconds": 1e6, "actor_hours": {"policy": 10.0}}]
    assert account(earlier, max_cost=26, max_hours=1)[0].limit_reached() is None
    reached = account(earlier, max_cost=25)[0].limit_reached()
    assert str(reached).startswith("run.max_cost=25 is reached: 25.50 in 2 starts; the same command with a higher")
    made, _ = account(max_hours=1e-9)
    time.sleep(0.001)
    assert "run.max_hours=1e-09 is reached; the same command resumes" in str(made.limit_reached())


def test_spending_adds_up_pool_by_pool():
    total = Spent(1.0, {"policy": 1.0}) + Spent(2.0, {"policy": 0.5, "reward": 2.0})
    assert total == Spent(3.0, {"policy": 1.5, "reward": 2.0}, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_cost": 5}, "max_cost has no effect without price"),
        ({"price": {"polcy": 1}}, "price has 'polcy'; its keys are policy, reward and judges"),
        ({"price": {"policy": "cheap"}}, "price of policy is 'cheap'"),
        ({"price": {"policy": -1}}, "price of policy is -1"),
        ({"max_hours": 0}, "max_hours is 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RunSettings(**settings)


@pytest.mark.parametrize(("price", "judges"), [({"policy": 1}, {}), ({"policy": 1, "reward": 1}, {"gold": None})])
def test_a_role_without_a_price_is_refused(price, judges):
    rest = {"policy": None, "reward": None, "data": None, "seed": 0, "limit": None, "out": ""}
    with pytest.raises(ValueError, match=r"run\.price has no (reward|judges); give its price too, 0 where"):
        Plan(methods={}, judges=judges, run=RunSettings(price=price), **rest)
