"""Hours and money of a run, as an interval, from what prompts cost in a pilot or an earlier run.

The searches in flight circle between the pools of actors: a closed queueing network. Its throughput lies between the
asymptotic bounds that the work per search gives (Lazowska et al., Quantitative System Performance, 1984, chapter 5):
with F in flight, D_j actor-seconds per search in a pool of A_j actors and the bottleneck B = max_j D_j / A_j,

    max(B, sum_j D_j / F)  <=  seconds per search  <=  (sum_j D_j + (F - 1) B) / F

Around that stand the sampling error of the means D_j (Student's t over prompts) and what is not known of the policy:
whether a step with all slots filled takes as long as the measured ones, whose slots were filled in part (the lower
end), or longer in proportion to the rows (the upper end). Left out: waiting for machines, and what is lost to
preemption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]  # low, high

_LEVEL = 0.9  # of the sampling error alone; with the rest it holds more often (tests/pipeline/test_forecast.py)
LEAST = 8  # prompts that an interval needs


@dataclass(frozen=True)
class Measured:
    """What prompts cost under all methods of a plan. float64 [prompts] each."""

    seconds: Mapping[str, np.ndarray]  # by pool: seconds of its actors
    tokens: np.ndarray  # generated
    reward_calls: np.ndarray
    fill: float = 1.0  # share of the policy's slots that were filled while it worked, in (0, 1]
    loading: Mapping[str, float] = field(default_factory=dict)  # by pool: seconds of an actor until it is ready

    @property
    def num_prompts(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Machines:
    """Where the run is to take place."""

    actors: Mapping[str, int]  # by pool
    in_flight: int  # searches
    num_methods: int = 1


@dataclass(frozen=True)
class Forecast:
    """Each low and high. Totals over the prompts that were asked about."""

    seconds: Interval
    actor_hours: Mapping[str, Interval]  # by pool
    tokens: Interval
    reward_calls: Interval

    def cost(self, price: Mapping[str, float]) -> Interval:
        """price: of an actor hour, by role."""
        ends = [
            sum(hours[end] * price[pool.partition(".")[0]] for pool, hours in self.actor_hours.items())
            for end in (0, 1)
        ]
        return ends[0], ends[1]


def forecast(measured: Measured, machines: Machines, num_prompts: int) -> Forecast:
    """What `num_prompts` more prompts of the same data take.

    Raises:
        ValueError: fewer than `LEAST` prompts were measured.
    """
    if measured.num_prompts < LEAST:
        raise ValueError(f"{measured.num_prompts} prompts were measured, and an interval needs {LEAST}")
    work = {pool: _mean(values, num_prompts) for pool, values in measured.seconds.items()}
    low = {
        pool: mean[0] * (measured.fill if pool == "policy" else 1.0) / machines.num_methods
        for pool, mean in work.items()
    }
    high = {pool: mean[1] / machines.num_methods for pool, mean in work.items()}
    flying, searches = machines.in_flight, num_prompts * machines.num_methods
    load = max(measured.loading.values(), default=0.0)
    least = searches * max(_bottleneck(low, machines), sum(low.values()) / flying)
    round_trip = sum(high.values()) + (flying - 1) * _bottleneck(high, machines)  # of one search among the others
    most = (searches / flying + 1) * round_trip  # the last ones end while the others' places stay empty
    seconds = (least + load, most + load)
    hours = {pool: (count * seconds[0] / 3600, count * seconds[1] / 3600) for pool, count in machines.actors.items()}
    totals = [_mean(values, num_prompts) for values in (measured.tokens, measured.reward_calls)]
    tokens, calls = ((num_prompts * mean[0], num_prompts * mean[1]) for mean in totals)
    return Forecast(seconds, hours, tokens, calls)


def _bottleneck(work: Mapping[str, float], machines: Machines) -> float:
    return max(seconds / machines.actors[pool] for pool, seconds in work.items())


def _mean(values: np.ndarray, num_prompts: int) -> Interval:
    """Where the mean over `num_prompts` further draws from the population of `values` lies."""
    count, mean = len(values), float(values.mean())
    spread = float(values.std(ddof=1)) * math.sqrt(1 / count + 1 / num_prompts)
    half = student_t((1 + _LEVEL) / 2, count - 1) * spread
    return max(0.0, mean - half), mean + half


def student_t(p: float, df: int) -> float:
    """Quantile of Student's t (Abramowitz and Stegun 26.7.5), to 0.01 from 7 degrees of freedom on."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / df ** (power + 1) for power, term in enumerate(terms))
