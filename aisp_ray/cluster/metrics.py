"""Ray metrics of a run, for Prometheus: `ray_<name>` on every node's metrics port. Few tags, never a prompt's name.

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

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from aisp_ray.types import Rollouts, Scores

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
_STATES = ("starting", "loading", "ready", "suspended", "draining")


class RunMetrics:
    """The metrics of one driver. Ray must be initialised."""

    def __init__(self) -> None:
        self._rows = Counter("aisp_rows_total", "finished rows", ("method", "status"))
        self._iterations = Counter("aisp_iterations_total", "iterations told", ("method",))
        self._tokens = Counter("aisp_generated_tokens_total", "response tokens")
        self.rollout = Histogram("aisp_rollout_seconds", "seconds of a rollout call", _SECONDS)
        self.score = Histogram("aisp_score_seconds", "seconds of a score call", _SECONDS)
        self._in_flight = Gauge("aisp_in_flight", "searches under way")
        self._replicas = Gauge("aisp_replicas", "actors by state", ("pool", "state"))
        self._outstanding = Gauge("aisp_outstanding_particles", "particles sent and not yet back", ("pool",))
        self._retries = Counter("aisp_retries_total", "calls sent again", ("pool", "kind"))
        self._ended = Counter("aisp_replicas_ended_total", "actors that ended", ("pool", "kind"))
        self._best = Gauge("aisp_best_reward", "highest reward so far")
        self._hours = Gauge("aisp_actor_hours", "hours of actors of this start", ("pool",))
        self._cost = Gauge("aisp_cost", "cost of all starts")

    def row(self, method: str, status: str) -> None:
        self._rows.inc(1, {"method": method, "status": status})

    def iteration(self, method: str, tokens: int) -> None:
        self._iterations.inc(1, {"method": method})
        if tokens:
            self._tokens.inc(tokens)

    def event(self, pool: str, event: str, kind: str) -> None:
        (self._retries if event == "retry" else self._ended).inc(1, {"pool": pool, "kind": kind})

    def spent(self, actor_hours: Mapping[str, float], cost: float | None) -> None:
        for pool, hours in actor_hours.items():
            self._hours.set(hours, {"pool": pool})
        if cost is not None:
            self._cost.set(cost)

    def state(self, pools: Mapping[str, Any], in_flight: int, best: float | None) -> None:
        """Gauges, a few times a minute."""
        self._in_flight.set(in_flight)
        if best is not None:
            self._best.set(best)
        for name, pool in pools.items():
            self._outstanding.set(sum(replica.load for replica in pool.replicas), {"pool": name})
            for state in _STATES:
                count = sum(replica.state == state for replica in pool.replicas)
                self._replicas.set(count, {"pool": name, "state": state})


class TimedModel:
    """A policy or a reward whose calls are timed."""

    def __init__(self, inner: Any, metrics: RunMetrics):
        self._inner = inner
        self._metrics = metrics

    async def rollout(self, *args: Any) -> Rollouts:
        with _timed(self._metrics.rollout):
            return await self._inner.rollout(*args)

    async def score(self, *args: Any) -> Scores:
        with _timed(self._metrics.score):
            return await self._inner.score(*args)


@contextlib.contextmanager
def _timed(histogram: Histogram) -> Iterator[None]:
    """Observe the seconds of what does not fail."""
    started = time.perf_counter()
    yield
    histogram.observe(time.perf_counter() - started)
