"""What a run has taken: seconds, hours of its actors and, where `run.price` says what those cost, money.

Every start of a run keeps its own in its record of the manifest, so that a restart knows what was spent before it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aisp_ray.cluster.pool import Pool
from aisp_ray.errors import LimitError
from aisp_ray.plan import RunSettings


@dataclass(frozen=True)
class Spent:
    """What one start, or several, took."""

    seconds: float = 0.0  # from the start to the end
    actor_hours: Mapping[str, float] = field(default_factory=dict)  # by pool
    starts: int = 1

    def __add__(self, other: Spent) -> Spent:
        hours = Counter(dict(self.actor_hours)) + Counter(dict(other.actor_hours))
        return Spent(self.seconds + other.seconds, dict(hours), self.starts + other.starts)

    def cost(self, price: Mapping[str, float] | None) -> float | None:
        """In the currency of the price; None without one. price: per actor hour, by role: policy, reward, judges."""
        if price is None:
            return None
        return sum(hours * price[pool.partition(".")[0]] for pool, hours in self.actor_hours.items())

    def as_json(self, price: Mapping[str, float] | None) -> dict[str, Any]:
        hours = {pool: round(value, 6) for pool, value in self.actor_hours.items()}
        cost = self.cost(price)
        return {
            "seconds": round(self.seconds, 3),
            "actor_hours": hours,
            "cost": None if cost is None else round(cost, 4),
        }


class Account:
    """What this start takes, and what all starts on its output have taken."""

    def __init__(self, run: RunSettings, out: str, manifest: Mapping[str, Any], run_id: str):
        self.run = run
        self.out = out
        self.pools: Mapping[str, Pool] = {}
        self._manifest = manifest
        self._run_id = run_id
        self._began = time.monotonic()

    def spent(self) -> Spent:
        """By this start. An actor counts from the moment it has a machine, loading included, to its end."""
        now = time.monotonic()
        held = {
            name: sum((actor.ended or now) - actor.placed for actor in (*pool.gone, *pool.replicas) if actor.placed)
            for name, pool in self.pools.items()
        }
        return Spent(now - self._began, {name: seconds / 3600 for name, seconds in held.items()})

    def in_all(self, own: Spent | None = None) -> Spent:
        """By every start. Of one that was killed, what came after its last record is missing. own: None: until now."""
        total = own or self.spent()
        for record in self._manifest["runs"]:
            if record["run_id"] != self._run_id:
                total += Spent(record.get("seconds", 0.0), record.get("actor_hours", {}))
        return total

    def note(self) -> None:
        """Keep it in this start's record of the manifest, which is not written here."""
        values = self.spent().as_json(None)
        record = next(record for record in self._manifest["runs"] if record["run_id"] == self._run_id)
        record |= {name: values[name] for name in ("seconds", "actor_hours")}

    def facts(self) -> dict[str, Any]:
        """For the summary."""
        spent = self.spent()
        own, total = spent.as_json(self.run.price), self.in_all(spent)
        shown = {name: own[name] for name in ("actor_hours", "cost")}
        return {**shown, "all_starts": {"starts": total.starts, **total.as_json(self.run.price)}}

    def in_words(self) -> str:
        """'3.20 actor hours, cost 6.40': the hours of this start, the cost of all."""
        cost = self.in_all().cost(self.run.price)
        words = f"{sum(self.spent().actor_hours.values()):.2f} actor hours"
        return words if cost is None else f"{words}, cost {cost:.2f}"

    def limit_reached(self) -> LimitError | None:
        total, run = self.in_all(), self.run
        cost = total.cost(run.price)
        if run.max_hours is not None and self.spent().seconds >= 3600 * run.max_hours:
            return LimitError(f"run.max_hours={run.max_hours:g} is reached; the same command resumes from {self.out}")
        if run.max_cost is not None and cost is not None and cost >= run.max_cost:
            return LimitError(
                f"run.max_cost={run.max_cost:g} is reached: {cost:.2f} in {total.starts} starts; "
                f"the same command with a higher run.max_cost resumes from {self.out}"
            )
        return None
