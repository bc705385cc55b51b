"""The models that all trials of a search share: loaded once, as actor pools or in this process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Mapping

from aisp_ray.driver import Driver
from aisp_ray.tune.plan import TunePlan
from aisp_ray.types import Placement

_PER_ACTOR = 8  # searches in flight per policy actor where its slots are not known
_MOST_CALLS = 512  # threads of one actor
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@contextlib.asynccontextmanager
async def local_driver(plan: TunePlan) -> AsyncIterator[Driver]:
    """A driver over models in this process, one device each, without Ray."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)  # before a model library is imported
    from aisp_ray.cluster.local import LocalPolicy, LocalReward

    def device(spec: Placement) -> str:
        return "cuda" if spec.num_gpus > 0 else "cpu"

    policy = LocalPolicy(plan.policy, device(plan.policy))
    reward = LocalReward(plan.reward, device(plan.reward))
    judges = {name: LocalReward(spec, device(spec)) for name, spec in plan.judges.items()}
    yield Driver(policy, reward, judges, plan.seed, choose_in_flight(plan, 1))


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
    """A driver over actor pools that are ready. most: how many actors each pool may have."""
    from aisp_ray.cluster.models import RemotePolicy, RemoteReward, make_pool

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
