"""Ray metrics of a run, for Prometheus: `ray_<name>` on every node's metrics port. Few tags, never a prompt's name.

Recording is not free, and one driver serves all actors: counts are added up here and recorded with the gauges, a few
times a minute, and the histograms take a sample of calls.

aisp_rows_total{method, status}       finished rows
aisp_iterations_total{method}         iterations told
aisp_generated_tokens_total           response tokens
aisp_rollout_seconds                  from asking a policy for an iteration's responses to having them
aisp_score_seconds                    the same of a reward model
aisp_in_flight                        searches (prompt x method) under way
aisp_replicas{pool, state}            actors by state
aisp_outstanding_particles{pool}      sent to actors and not yet back
aisp_retries_total{pool, kind}        calls sent again: lost, broken, preempted, unavailable, service, unknown
aisp_replicas_ended_total{pool, kind} actors that ended, and why
aisp_best_reward                      highest reward so far
aisp_actor_hours{pool}                hours of actors with a machine, of this start
aisp_cost                             what all starts on this output have cost, where run.price is given
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from aisp_ray.types import Rollouts, Scores

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
_MOST_A_SECOND = 10.0  # calls that a histogram takes
_STATES = ("starting", "loading", "ready", "suspended", "draining")


class RunMetrics:
    """The metrics of one driver. Ray must be initialised."""

    def __init__(self) -> None:
        self._rows = Counter("aisp_rows_total", "finished rows", ("method", "status"))
        self._iterations = Counter("aisp_iterations_total", "iterations told", ("method",))
        self._tokens = Counter("aisp_generated_tokens_total", "response tokens")
        self.rollout = CallTimes(Histogram("aisp_rollout_seconds", "seconds of a rollout call", _SECONDS))
        self.score = CallTimes(Histogram("aisp_score_seconds", "seconds of a score call", _SECONDS))
        self._in_flight = Gauge("aisp_in_flight", "searches under way")
        self._replicas = Gauge("aisp_replicas", "actors by state", ("pool", "state"))
        self._outstanding = Gauge("aisp_outstanding_particles", "particles sent and not yet back", ("pool",))
        self._retries = Counter("aisp_retries_total", "calls sent again", ("pool", "kind"))
        self._ended = Counter("aisp_replicas_ended_total", "actors that ended", ("pool", "kind"))
        self._best = Gauge("aisp_best_reward", "highest reward so far")
        self._hours = Gauge("aisp_actor_hours", "hours of actors of this start", ("pool",))
        self._cost = Gauge("aisp_cost", "cost of all starts")
        self._waiting: Counts[tuple[Counter, tuple[tuple[str, str], ...]]] = Counts()

    def row(self, method: str, status: str) -> None:
        self._waiting[self._rows, (("method", method), ("status", status))] += 1

    def iteration(self, method: str, tokens: int) -> None:
        self._waiting[self._iterations, (("method", method),)] += 1
        self._waiting[self._tokens, ()] += tokens

    def event(self, pool: str, event: str, kind: str) -> None:
        self._waiting[self._retries if event == "retry" else self._ended, (("pool", pool), ("kind", kind))] += 1

    def spent(self, actor_hours: Mapping[str, float], cost: float | None) -> None:
        for pool, hours in actor_hours.items():
            self._hours.set(hours, {"pool": pool})
        if cost is not None:
            self._cost.set(cost)

    def state(self, pools: Mapping[str, Any], in_flight: int, best: float | None) -> None:
        """Record the gauges, and what was counted since the last time."""
        counts, self._waiting = self._waiting, Counts()
        for (counter, tags), count in counts.items():
            if count:
                counter.inc(count, dict(tags))
        self._in_flight.set(in_flight)
        if best is not None:
            self._best.set(best)
        for name, pool in pools.items():
            self._outstanding.set(sum(replica.load for replica in pool.replicas), {"pool": name})
            for state in _STATES:
                count = sum(replica.state == state for replica in pool.replicas)
                self._replicas.set(count, {"pool": name, "state": state})


class CallTimes:
    """A histogram of the seconds of calls; of many calls, a sample."""

    def __init__(self, histogram: Histogram, clock: Callable[[], float] = time.perf_counter):
        self._histogram = histogram
        self._clock = clock
        self._next = 0.0  # when it takes another one

    def observe(self, seconds: float) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + 1 / _MOST_A_SECOND
            self._histogram.observe(seconds)


class TimedModel:
    """A policy or a reward whose calls are timed, those that do not fail."""

    def __init__(self, inner: Any, metrics: RunMetrics):
        self._inner = inner
        self._metrics = metrics

    async def rollout(self, *args: Any) -> Rollouts:
        started = time.perf_counter()
        rollouts = await self._inner.rollout(*args)
        self._metrics.rollout.observe(time.perf_counter() - started)
        return rollouts

    async def score(self, *args: Any) -> Scores:
        started = time.perf_counter()
        scores = await self._inner.score(*args)
        self._metrics.score.observe(time.perf_counter() - started)
        return scores
