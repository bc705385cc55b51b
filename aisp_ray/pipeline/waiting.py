"""Why a run stands still: reading the data, or an actor, waits for CPUs that another job on the cluster holds."""

from __future__ import annotations

import time
from collections.abc import Mapping

from aisp_ray.cluster.placement import cpu_wait, cpus_held
from aisp_ray.cluster.pool import Pool
from aisp_ray.cluster.session import cpus_now
from aisp_ray.data._ray import TASK_CPUS
from aisp_ray.pipeline.feed import Feed
from aisp_ray.types import Placement

_PATIENCE = 5.0  # seconds; starting a process takes some


def waits_for(feed: Feed, pools: Mapping[str, Pool], asks: Mapping[str, Placement]) -> str:
    """'waiting for 0.25 CPU to read the data; 1.5 of 2 are held by others'; empty where nothing waits for a CPU.

    asks: what an actor of each pool asks for. Asks Ray, so not for the event loop.
    """
    purposes = {
        f"to start {name}": asks[name].num_cpus for name, pool in pools.items() if _lacks_cpus(pool, asks[name])
    }
    if feed.quiet_seconds > _PATIENCE:
        purposes["to read the data"] = TASK_CPUS
    if not purposes:
        return ""
    total, free = cpus_now()
    placed = {name: sum(actor.placed is not None for actor in pool.replicas) for name, pool in pools.items()}
    own = cpus_held(asks, placed)
    return "; ".join(filter(None, (cpu_wait(cpus, purpose, total, free, own) for purpose, cpus in purposes.items())))


def _lacks_cpus(pool: Pool, ask: Placement) -> bool:
    """Whether actors without a GPU, which an autoscaler need not bring a machine for, have waited for a while."""
    starting = [actor for actor in pool.replicas if actor.state == "starting"]
    return ask.num_gpus == 0 and any(time.monotonic() - actor.born > _PATIENCE for actor in starting)
