"""A budget over all prompts: the plan, and the driver that follows it whatever is scheduled or restarted."""

import asyncio
import itertools
import math
import random

import numpy as np
import pytest

from aisp_ray.driver import Driver
from aisp_ray.errors import DataError, RefusedError
from aisp_ray.ledger import Task, row_of
from aisp_ray.methods._stopping import expected_gains
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.aisp_commit import AispCommit
from aisp_ray.methods.base import fit_budgets, total_of
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.methods.speculative_rejection import SpeculativeRejection
from aisp_ray.methods.total_budget import Outlook, TotalBudget, allocate, outlook
from aisp_ray.pipeline.codec import decode, encode
from aisp_ray.rng import generator
from aisp_ray.types import Prompt, Rollout, Rollouts, Scores


def prompt(ordinal, text="hello", error=None):
    return Prompt(f"fake/test/{ordinal:08d}", ordinal, "fake", text, error=error)


class Policy:
    """Replies are numbers whose spread the prompt's text says; they come back in a random order of time."""

    def __init__(self):
        self.asked = []

    async def rollout(self, prompt, proposal, seed):
        self.asked.append((prompt.ordinal, proposal.iteration))
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
        if prompt.text == "broken":
            raise DataError("the prompt is too long")
        if prompt.text == "breaks" and proposal.iteration == 1:
            raise DataError("the second reply is empty")
        spread = float(prompt.text) if prompt.text[0].isdigit() else 0.3
        draws = [generator(seed, prompt.prompt_id, proposal.iteration, i).normal() for i in range(proposal.num_samples)]
        items = (Rollout(i, repr(spread * x), (1, 2, 3), "stop", 3) for i, x in enumerate(draws))
        return Rollouts(proposal.iteration, tuple(items), 5)


class Reward:
    async def score(self, prompt, responses):
        return Scores(tuple(float(text) for text in responses))


async def stream(tasks):
    for task in tasks:
        yield task


def search_all(tasks, total, resume=None, in_flight=4, watch=None):
    """Rows by ordinal and method, what was decided, and what the policy was asked. total: a budget, or its samples."""
    policy, kept = Policy(), []
    budget = TotalBudget(total, keep=kept.append) if isinstance(total, int) else total

    async def go():
        driver = Driver(policy, Reward(), {}, 0, in_flight)
        driver.watch = watch
        return [outcome async for outcome in driver.run(stream(tasks), resume, budget)]

    rows = {
        outcome.task.key: row_of(outcome, {"run_id": "r", "config_hash": "h", "seed": 0})
        for outcome in asyncio.run(go())
    }
    return {key: {**row, "wall_seconds": 0} for key, row in rows.items()}, kept, policy.asked


METHOD = BestOfN(n=4, kappa=8)
SPREADS = ["1", "4", "0.5", "2", "1", "3"]
TASKS = [Task(prompt(i, spread), "b", METHOD) for i, spread in enumerate(SPREADS)]


# ---------------------------------------------------------------- the plan


def brute_force(outlooks, iterations):
    """The best of all plans, by trying every one."""
    keys = list(outlooks)
    ranges = [range(outlooks[key].num_left + 1) for key in keys]

    def gain(counts):
        return sum(
            expected_gains(one.mean, one.spread, one.best, [one.num_draws * count])[0]
            for one, count in zip(outlooks.values(), counts, strict=True)
        )

    plans = (counts for counts in itertools.product(*ranges) if sum(counts) <= iterations)
    return gain(max(plans, key=gain)), gain


@pytest.mark.parametrize("iterations", [0, 1, 3, 5, 9])
def test_no_plan_is_expected_to_gain_more(iterations):
    outlooks = {
        0: Outlook(0.0, 1.0, 1.5, 4, 3),
        1: Outlook(0.2, 0.5, 0.4, 4, 2),
        2: Outlook(-3.0, 2.0, 2.0, 4, 4),
        3: Outlook(1.0, 0.1, 2.5, 4, 3),
    }
    plan = allocate(outlooks, 4 * iterations + 3)
    most, gain = brute_force(outlooks, iterations)
    assert sum(plan.values()) <= iterations
    assert gain([plan.get(key, 0) for key in outlooks]) == pytest.approx(most, rel=1e-9)


def test_what_gains_nothing_or_is_unknown_gets_nothing():
    assert allocate({}, 100) == {}
    assert allocate({0: Outlook(0.0, 0.0, 1.0, 4, 5), 1: Outlook(math.nan, 1.0, 0.0, 4, 5)}, 100) == {}
    assert allocate({0: Outlook(0.0, 1.0, 1.0, 4, 0)}, 100) == {}
    assert allocate({5: Outlook(0.0, 1.0, 1.0, 4, 2), 2: Outlook(0.0, 1.0, 1.0, 4, 2)}, 4) == {2: 1}  # a tie


def test_an_outlook_pools_what_is_drawn_from_one_distribution():
    trace = (1.0, 3.0, 100.0), (1.0, 7.0, 50.0), (2.0, 1.5, 900.0)
    pooled = outlook(BestOfN(n=4, kappa=8), trace, 2)
    assert pooled == Outlook(2.0, 5.0, 2.0, 4, 6)
    assert outlook(Aisp(n=4, kappa=8), trace, 2) == Outlook(3.0, 7.0, 2.0, 4, 6)
    assert math.isnan(outlook(Aisp(n=4, kappa=8), ((1.0, 1.0), (1.0, math.nan), (1.0, 1.0)), 2).mean)


# ---------------------------------------------------------------- the driver


def test_first_one_for_each_then_where_most_is_expected():
    rows, (shares,), asked = search_all(TASKS, 80)
    assert set(asked[: len(TASKS)]) == {(i, 0) for i in range(len(TASKS))}
    samples = [rows[i, "b"]["num_samples"] for i in range(len(TASKS))]
    assert samples == [4 * shares["b"][i] for i in range(len(TASKS))]
    assert sum(samples) == 80
    assert min(samples) >= 4
    assert samples.index(max(samples)) == 1  # the widest
    assert samples[2] < samples[1] / 2  # the narrowest


def test_a_plan_followed_by_hand_gives_the_same_shares():
    """The rule in ten lines: replan after every iteration, from the rewards themselves."""
    rewards = {
        i: [[float(s) * generator(0, TASKS[i].prompt.prompt_id, k, j).normal() for j in range(4)] for k in range(8)]
        for i, s in enumerate(SPREADS)
    }
    told = dict.fromkeys(rewards, 1)
    while True:
        seen = {i: np.array(rewards[i][: told[i]]) for i in rewards}
        outlooks = {
            i: Outlook(r.mean(), math.sqrt(r.var(axis=1, ddof=1).mean()), r.max(), 4, 8 - told[i])
            for i, r in seen.items()
        }
        plan = allocate(outlooks, 80 - 4 * sum(told.values()))
        if not plan:
            break
        for i in plan:
            told[i] += 1
    assert search_all(TASKS, 80)[1] == [{"b": told}]


def test_rows_do_not_depend_on_how_many_are_in_flight():
    assert search_all(TASKS, 80, in_flight=1)[:2] == search_all(TASKS, 80, in_flight=9)[:2]


@pytest.mark.parametrize("stop_after", [1, 4, 7, 11, 16, 20])
def test_an_interrupted_run_goes_on_to_the_same_rows(stop_after):
    methods = {"b": METHOD, "a": AispCommit(n=4, kappa=5)}
    tasks = [Task(task.prompt, name, method) for task in TASKS for name, method in methods.items()]
    whole, shares, asked = search_all(tasks, 60)
    snapshots = [{}]

    def watch(task, progress, rollouts, scores):
        snapshots.append({**snapshots[-1], task.key: encode(progress)})

    search_all(tasks, 60, watch=watch)
    resume = {key: decode(value) for key, value in snapshots[stop_after].items()}
    again, shares_again, asked_again = search_all(tasks, 60, resume)
    assert (again, shares_again) == (whole, shares)
    assert len(asked_again) == len(asked) - stop_after  # nothing is drawn twice


def test_a_budget_for_everything_changes_no_row():
    assert search_all(TASKS, 4 * 8 * 6)[0] == search_all(TASKS, None)[0]


def test_what_fails_and_what_stops_early_leaves_its_share_to_the_others():
    stops = BestOfN(n=4, kappa=8, stop_at=0.5)
    tasks = [
        Task(prompt(0, error="the prompt is empty"), "b", stops),
        Task(prompt(1, "broken"), "b", stops),
        Task(prompt(2, "breaks"), "b", stops),
        *(Task(prompt(i, "0.4"), "b", stops) for i in range(3, 6)),
    ]
    rows, (shares,), _ = search_all(tasks, 60)
    assert [rows[i, "b"]["error"] for i in range(3)] == [
        "the prompt is empty",
        "the prompt is too long",
        "the second reply is empty",
    ]
    assert 0 not in shares["b"]
    assert sum(shares["b"].values()) <= 15
    assert all(rows[i, "b"]["error"] is None for i in range(3, 6))
    stopped = [i for i in range(3, 6) if rows[i, "b"]["reward"] >= 0.5]
    assert all(rows[i, "b"]["num_samples"] == 4 * shares["b"][i] for i in stopped)


def test_what_was_decided_is_followed_and_nothing_else():
    whole, (shares,), _ = search_all(TASKS, 80)
    rest, kept, _ = search_all(TASKS[3:], TotalBudget(80, shares))  # as after a restart that finds the others in files
    assert rest == {key: row for key, row in whole.items() if key[0] >= 3}
    assert kept == []
    with pytest.raises(RefusedError, match="fake/test/00000009 was not there"):
        search_all([Task(prompt(9), "b", METHOD)], TotalBudget(80, shares))


def test_a_budget_below_a_first_iteration_of_all_is_refused():
    with pytest.raises(RefusedError, match="total:23 does not cover a first iteration of b, 4 samples, for each of"):
        search_all(TASKS, 23)


# ---------------------------------------------------------------- the key


def test_a_total_leaves_methods_as_they_are_and_refuses_those_it_cannot_share_out():
    assert total_of("total:8192") == 8192
    assert total_of(256) is total_of(None) is None
    assert fit_budgets({"b": METHOD}, "total:100", 64) == {"b": METHOD}
    for method in (SpeculativeRejection(), BestOfN(n=1), Aisp(final_draws=4)):
        with pytest.raises(ValueError, match=r"method\.x: budget=total shares iterations out"):
            fit_budgets({"x": method}, "total:100", 64)
