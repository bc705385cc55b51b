"""Models on a Ray cluster: pools of actors behind the protocols of `types.py`, which the driver calls."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import ray

from aisp_ray.cluster.actors import PolicyActor, RewardActor, remote_class
from aisp_ray.cluster.models import ModelPlan, Models, asks_of, choose_in_flight
from aisp_ray.cluster.placement import Node, ask_in_words, find_problems, most_actors, shortage
from aisp_ray.cluster.pool import Pool, PoolCall, PoolSettings
from aisp_ray.cluster.session import check_machine, cpus_now, joined, local_node, starts_local
from aisp_ray.cluster.wire import pack, unpack
from aisp_ray.data._ray import TASK_CPUS
from aisp_ray.errors import SessionError
from aisp_ray.plan import RunSettings
from aisp_ray.policy.base import PolicySpec
from aisp_ray.rewards.base import RewardSpec
from aisp_ray.types import Placement, Prompt, Proposal, Reward, Rollouts, Scores

_MOST_CALLS = 512  # threads of one actor


class RayBackend:
    """Makes and ends actors of one kind."""

    def __init__(self, cls: type, spec: Placement, calls: int):
        self._cls = remote_class(cls, spec, calls)
        self._spec = ray.put(spec)  # kept here, so that a replacement can always be made

    def create(self, name: str) -> Any:
        return self._cls.remote(self._spec, name)

    def kill(self, handle: Any) -> None:
        ray.kill(handle)


class RemotePolicy:
    """`types.Policy` served by a pool."""

    def __init__(self, pool: Pool):
        self.pool = pool

    async def rollout(self, prompt: Prompt, proposal: Proposal, seed: int) -> Rollouts:
        what = f"rollout of {prompt.prompt_id}, iteration {proposal.iteration}"
        args = (pack((prompt, proposal, seed)),)
        return unpack(await self.pool.call(PoolCall("rollout", args, proposal.num_samples, prompt.prompt_id, what)))


class RemoteReward:
    """`types.Reward` served by a pool."""

    def __init__(self, pool: Pool):
        self.pool = pool

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> Scores:
        what, args = f"scores of {prompt.prompt_id}", (pack((prompt, tuple(responses))),)
        return unpack(await self.pool.call(PoolCall("score", args, len(responses), prompt.prompt_id, what)))


def make_pool(name: str, spec: PolicySpec | RewardSpec, high: int, run: RunSettings, calls: int) -> Pool:
    """The pool of a model, not started.

    name: its key in the configuration. high: how many actors it may have. calls: at most so many at once in one actor.
    """
    settings = PoolSettings(
        name=name,
        low=spec.actors[0],
        high=high,
        ready_timeout=run.ready_timeout_seconds,
        call_timeout=run.call_timeout_seconds,
        starvation_timeout=run.starvation_timeout_seconds,
        infra_retries=run.infra_retries,
        ask=ask_in_words(spec),
    )
    cls = PolicyActor if isinstance(spec, PolicySpec) else RewardActor
    return Pool(settings, RayBackend(cls, spec, calls))


@contextlib.asynccontextmanager
async def open_pools(plan: ModelPlan, say: Callable[[str], None]) -> AsyncIterator[Models]:
    """The models of a plan on a Ray cluster. Joins a session that is open here, else opens and closes one."""
    asks = asks_of(plan)
    with joined(plan.run, asks, say) as nodes:
        if problems := find_problems(asks, nodes):
            raise SessionError("\n".join(problems))
        _warn(asks, nodes, say)
        most = most_actors(asks, sum(node.num_cpus * node.copies for node in nodes))
        in_flight = choose_in_flight(plan, most["policy"])
        judging = {f"judges.{name}": judge for name, judge in plan.judges.items()}
        specs: dict[str, PolicySpec | RewardSpec] = {"policy": plan.policy, "reward": plan.reward, **judging}
        pools = {
            name: make_pool(name, spec, most[name], plan.run, min(in_flight, _MOST_CALLS))
            for name, spec in specs.items()
        }
        judges = {name: RemoteReward(pools[f"judges.{name}"]) for name in plan.judges}
        try:
            for pool in pools.values():
                pool.start()
            yield Models(RemotePolicy(pools["policy"]), RemoteReward(pools["reward"]), judges, in_flight, pools)
        finally:
            for pool in reversed(pools.values()):
                await pool.close()


@contextlib.asynccontextmanager
async def open_reward(plan: ModelPlan, say: Callable[[str], None]) -> AsyncIterator[Reward]:
    """The reward model of a plan alone, on its fewest actors, ready."""
    asks = {"reward": plan.reward}
    with joined(plan.run, asks, say) as nodes:
        if problems := find_problems(asks, nodes):
            raise SessionError("\n".join(problems))
        pool = make_pool("reward", plan.reward, plan.reward.actors[0], plan.run, _MOST_CALLS)
        try:
            pool.start()
            await pool.wait_ready()
            yield RemoteReward(pool)
        finally:
            await pool.close()


def _warn(asks: Mapping[str, Placement], nodes: Sequence[Node], say: Callable[[str], None]) -> None:
    """Say that others hold the CPUs that this run will ask for, unless more machines may come."""
    total, free = cpus_now()
    may_grow = sum(node.num_cpus * node.copies for node in nodes) > total
    if not may_grow and (text := shortage(asks, TASK_CPUS, total, free)):
        say(f"warning: {text}")


def preflight(plan: ModelPlan, say: Callable[[str], None] = lambda text: None) -> list[str]:
    """What can never be placed on the cluster that the plan would join or start, a sentence each.

    say: takes warnings of what will have to wait.
    """
    asks = asks_of(plan)
    try:
        if starts_local(plan.run.address):
            check_machine()
            return find_problems(asks, [local_node(asks)])
        with joined(plan.run, asks) as nodes:
            problems = find_problems(asks, nodes)
            if not problems:
                _warn(asks, nodes, say)
            return problems
    except SessionError as error:
        return [str(error)]
