"""Open models behind the protocols that the driver speaks, and what a plan must say of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aisp_ray.plan import RunSettings
from aisp_ray.policy.base import PolicySpec
from aisp_ray.rewards.base import RewardSpec
from aisp_ray.types import Placement, Policy, Reward

if TYPE_CHECKING:
    from aisp_ray.cluster.pool import Pool

_PER_ACTOR = 8  # searches in flight per policy actor where its slots are not known


class ModelPlan(Protocol):
    """What an evaluation, a search of settings and the training of a value function say about their models."""

    @property
    def policy(self) -> PolicySpec: ...

    @property
    def reward(self) -> RewardSpec: ...

    @property
    def judges(self) -> Mapping[str, RewardSpec]: ...

    @property
    def run(self) -> RunSettings: ...

    @property
    def num_draws(self) -> int:
        """Responses that one search draws at once."""

    @property
    def local(self) -> bool:
        """In this process, one device each, instead of on a Ray cluster."""


@dataclass(frozen=True)
class Models:
    """Open models behind the protocols of `types.py`."""

    policy: Policy
    reward: Reward
    judges: Mapping[str, Reward]  # by name
    in_flight: int  # searches that fill the policy
    pools: Mapping[str, Pool] = field(default_factory=dict)  # by key of the configuration; none in this process

    async def ready(self) -> None:
        """Until every pool has its minimum of actors.

        Raises:
            PoolError: a model does not load.
            StarvationError: not there within `run.ready_timeout_seconds`.
        """
        await asyncio.gather(*(pool.wait_ready() for pool in self.pools.values()))


def asks_of(plan: ModelPlan) -> dict[str, Placement]:
    """What each model asks of the machines, by its key in the configuration."""
    return {"policy": plan.policy, "reward": plan.reward, **{f"judges.{name}": j for name, j in plan.judges.items()}}


def choose_in_flight(plan: ModelPlan, actors: int) -> int:
    """Enough searches to fill every policy slot three times: one share is drawn while the others are scored."""
    if plan.run.in_flight is not None:
        return plan.run.in_flight
    slots = plan.policy.slots
    return actors * (max(4, math.ceil(3 * slots / plan.num_draws)) if slots else _PER_ACTOR)
