"""Hours and money of a run lie in the interval that a pilot gives, in nine of ten simulated runs."""

import heapq
import itertools
import math
from collections import deque

import numpy as np
import pytest

from aisp_ray.pipeline.forecast import Machines, Measured, forecast, student_t
from aisp_ray.rng import generator

PRICE = {"policy": 2.1, "reward": 1.2}


class Simulated:
    """Policies with slots that refill at once, reward models that score one call after another, calls by least load.

    A step of a policy takes one second however many of its slots are filled, as on a GPU that waits for memory.
    """

    def __init__(self, prompts, policies, rewards, slots, in_flight, reward_seconds):
        """prompts: [iterations][n] token counts each. reward_seconds: of one response."""
        self.slots = [[0.0] * slots for _ in range(policies)]
        self.free = [0.0] * rewards
        self.load = {"policy": [0] * policies, "reward": [0] * rewards}
        self.prompts, self.reward_seconds = prompts, reward_seconds
        self.tokens = np.array([float(sum(map(sum, prompt))) for prompt in prompts])
        self.scored = np.array([float(sum(map(len, prompt))) for prompt in prompts])
        self.waiting, self.events, self.serial = deque(range(len(prompts))), [], itertools.count()
        self.spans = [[] for _ in range(policies)]
        self.seconds = 0.0
        for _ in range(min(in_flight, len(prompts))):
            self._draw(0.0, self.waiting.popleft(), 0)
        while self.events:
            self._step()

    def _least(self, pool):
        actor = min(range(len(self.load[pool])), key=self.load[pool].__getitem__)
        self.load[pool][actor] += 1
        return actor

    def _draw(self, now, prompt, iteration):
        actor, end = self._least("policy"), now
        for tokens in self.prompts[prompt][iteration]:
            row = max(heapq.heappop(self.slots[actor]), now) + tokens
            heapq.heappush(self.slots[actor], row)
            end = max(end, row)
        self.spans[actor].append((now, end))
        heapq.heappush(self.events, (end, next(self.serial), "drawn", prompt, iteration, actor))

    def _step(self):
        now, _, kind, prompt, iteration, actor = heapq.heappop(self.events)
        self.seconds = now
        if kind == "drawn":
            self.load["policy"][actor] -= 1
            scorer = self._least("reward")
            self.free[scorer] = max(self.free[scorer], now) + self.reward_seconds * len(self.prompts[prompt][iteration])
            heapq.heappush(self.events, (self.free[scorer], next(self.serial), "scored", prompt, iteration, scorer))
            return
        self.load["reward"][actor] -= 1
        if iteration + 1 < len(self.prompts[prompt]):
            self._draw(now, prompt, iteration + 1)
        elif self.waiting:
            self._draw(now, self.waiting.popleft(), 0)

    def measured(self):
        """As the rows and the summary of a run tell it."""
        busy = 0.0
        for spans in self.spans:
            until = 0.0
            for start, end in sorted(spans):
                busy, until = busy + max(0.0, end - max(start, until)), max(until, end)
        steps = busy * len(self.slots[0])
        policy = self.tokens / self.tokens.sum() * busy
        seconds = {"policy": policy, "reward": self.scored * self.reward_seconds}
        return Measured(seconds, self.tokens, self.scored, fill=self.tokens.sum() / steps)


def population(rng, count, spread, iterations=3, n=8, most=400):
    """Prompts whose mean response length is log-normal with this coefficient of variation."""
    sigma = math.sqrt(math.log(1 + spread**2))
    means = 60 * rng.lognormal(-(sigma**2) / 2, sigma, count)
    return [np.clip(rng.lognormal(np.log(mean) - 0.08, 0.4, (iterations, n)), 1, most).tolist() for mean in means]


# name: policies, rewards, slots, in flight per policy, seconds per scored response, spread of prompts; widest interval
SCENARIOS = {
    "the policy is the bottleneck": (4, 2, 32, 12, 0.5, 0.5, 3.0),
    "both are": (4, 2, 32, 12, 0.9, 0.5, 2.5),
    "the reward model is": (4, 1, 32, 12, 2.0, 0.5, 1.5),
    "prompts differ a lot": (4, 2, 32, 12, 0.5, 1.2, 6.0),
    "slots stay empty in the pilot": (4, 2, 128, 48, 0.1, 0.5, 15.0),
    "one actor each, few in flight": (1, 1, 32, 4, 0.5, 0.7, 4.0),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_time_and_money_lie_in_the_interval_of_a_pilot_in_nine_of_ten_runs(name):
    runs, count = 25, 200
    policies, rewards, slots, per_actor, reward_seconds, spread, widest = SCENARIOS[name]
    held, widths = 0, []
    for run in range(runs):
        rng = generator("forecast", name, run)
        prompts = population(rng, count, spread)
        drawn = [prompts[i] for i in rng.choice(count, 16, replace=False)]
        measured = Simulated(drawn, 1, 1, slots, per_actor, reward_seconds).measured()
        machines = Machines({"policy": policies, "reward": rewards}, per_actor * policies)
        found = forecast(measured, machines, count)
        took = Simulated(prompts, policies, rewards, slots, per_actor * policies, reward_seconds)
        cost = took.seconds / 3600 * sum(PRICE[pool] * actors for pool, actors in machines.actors.items())
        held += found.seconds[0] <= took.seconds <= found.seconds[1] and (
            found.cost(PRICE)[0] <= cost <= found.cost(PRICE)[1]
        )
        widths.append(found.seconds[1] / found.seconds[0])
    assert held >= 0.9 * runs, f"{held} of {runs}"
    assert np.median(widths) < widest  # one that holds because it is endless says nothing


def measured_of(values):
    values = np.asarray(values, dtype=np.float64)
    return Measured({"policy": values, "reward": values / 2}, values, values)


def test_more_actors_shorten_the_time_and_the_bottleneck_decides():
    prompts = measured_of([10.0] * 20)
    alone = forecast(prompts, Machines({"policy": 1, "reward": 1}, 1000), 1000).seconds
    assert alone[0] == pytest.approx(10_000)
    four = forecast(prompts, Machines({"policy": 4, "reward": 1}, 1000), 1000).seconds
    assert four[0] == pytest.approx(5_000)  # the reward model's
    few = forecast(prompts, Machines({"policy": 100, "reward": 100}, 1), 1000).seconds
    assert few[0] == pytest.approx(15_000)  # one search at a time waits for itself


def test_the_interval_narrows_with_what_was_measured_and_grows_with_what_is_not_known():
    rng = generator("widths")
    few, many = (measured_of(rng.exponential(10, count)) for count in (16, 1600))
    machines = Machines({"policy": 1, "reward": 1}, 100)
    width = lambda found: found.seconds[1] / found.seconds[0]  # noqa: E731
    assert width(forecast(few, machines, 10_000)) > 1.5 * width(forecast(many, machines, 10_000))
    half = Measured(many.seconds, many.tokens, many.reward_calls, fill=0.5, loading={"policy": 60.0})
    whole, filled = (forecast(of, machines, 10_000).seconds for of in (many, half))
    assert filled == (pytest.approx(whole[0] / 2 + 60), pytest.approx(whole[1] + 60))


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="7 prompts were measured, and an interval needs 8"):
        forecast(measured_of([1.0] * 7), Machines({"policy": 1, "reward": 1}, 1), 10)


@pytest.mark.parametrize(("p", "df", "table"), [(0.95, 7, 1.895), (0.95, 15, 1.753), (0.975, 10, 2.228)])
def test_students_t_is_that_of_the_tables(p, df, table):
    assert student_t(p, df) == pytest.approx(table, abs=0.01)
