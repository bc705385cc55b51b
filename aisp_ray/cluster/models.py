"""Pools of Ray actors behind the protocols of `types.py`: what the driver calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from aisp_ray.cluster.actors import PolicyActor, RewardActor, remote_class
from aisp_ray.cluster.placement import ask_in_words
from aisp_ray.cluster.pool import Call, Pool, PoolSettings
from aisp_ray.plan import RunSettings
from aisp_ray.types import Placement, Prompt, Proposal, Rollouts, Scores


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
        args = (prompt, proposal, seed)
        return await self.pool.call(Call("rollout", args, proposal.num_samples, prompt.prompt_id, what))


class RemoteReward:
    """`types.Reward` served by a pool."""

    def __init__(self, pool: Pool):
        self.pool = pool

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> Scores:
        args = (prompt, tuple(responses))
        return await self.pool.call(
            Call("score", args, len(args[1]), prompt.prompt_id, f"scores of {prompt.prompt_id}")
        )


def make_pool(
    kind: str,
    spec: Placement,
    named: tuple[str, int],
    run: RunSettings,
    calls: int,
    count: Callable[[str, str], None] | None = None,
) -> Pool:
    """The pool of a policy or reward (kind), not started.

    named: what messages call it, and how many actors it may have. calls: at most so many at once in one actor.
    """
    name, high = named
    low = spec.actors[0]
    settings = PoolSettings(
        name=name,
        low=low,
        high=high,
        ready_timeout=run.ready_timeout_seconds,
        call_timeout=run.call_timeout_seconds,
        starvation_timeout=run.starvation_timeout_seconds,
        infra_retries=run.infra_retries,
        ask=ask_in_words(spec),
    )
    return Pool(settings, RayBackend({"policy": PolicyActor, "reward": RewardActor}[kind], spec, calls), count)
