"""The actor pools that all trials of a search share: a model is loaded once, however many trials there are."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping

from aisp_ray.cluster.models import RemotePolicy, RemoteReward, make_pool
from aisp_ray.driver import Driver
from aisp_ray.tune.plan import TunePlan
from aisp_ray.types import Placement

_PER_ACTOR = 8  # searches in flight per policy actor where its slots are not known
_MOST_CALLS = 512  # threads of one actor


def asks_of(plan: TunePlan) -> Mapping[str, Placement]:
    """Every pool's name as in the configuration, and its placement."""
    return {"policy": plan.policy, "reward": plan.reward, **{f"judges.{name}": j for name, j in plan.judges.items()}}


def choose_in_flight(plan: TunePlan, actors: int) -> int:
    """Enough searches to fill every policy slot twice."""
    slots = getattr(plan.policy, "slots", None)
    if plan.run.in_flight or not slots:
        return plan.run.in_flight or actors * _PER_ACTOR
    method = plan.workbench.make({})
    draws = max(1, method.num_samples // method.num_iterations)
    return actors * max(2, math.ceil(2 * slots / draws))


@contextlib.asynccontextmanager
async def shared_driver(plan: TunePlan, most: Mapping[str, int]) -> AsyncIterator[Driver]:
    """A driver over pools that are ready. most: how many actors each pool may have."""
    in_flight = choose_in_flight(plan, most["policy"])
    pools = {
        name: make_pool(
            "policy" if name == "policy" else "reward",
            spec,
            (name.removeprefix("judges."), most[name]),
            plan.run,
            min(in_flight, _MOST_CALLS),
        )
        for name, spec in asks_of(plan).items()
    }
    try:
        for pool in pools.values():
            pool.start()
        await asyncio.gather(*(pool.wait_ready() for pool in pools.values()))
        judges = {name: RemoteReward(pools[f"judges.{name}"]) for name in plan.judges}
        yield Driver(RemotePolicy(pools["policy"]), RemoteReward(pools["reward"]), judges, plan.seed, in_flight)
    finally:
        for pool in pools.values():
            await pool.close()
