"""Policies and reward models in this process, behind the protocols the driver speaks. No Ray.

policy = LocalPolicy(policy_spec)
reward = LocalReward(reward_spec)
progress = asyncio.run(search(Task(prompt, "aisp", Aisp(n=16)), policy, reward, seed=0))
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aisp_ray.policy.base import PolicySpec
from aisp_ray.policy.worker import PolicyWorker
from aisp_ray.rewards.base import RewardSpec, ScoreRequest
from aisp_ray.rewards.worker import RewardWorker
from aisp_ray.types import Prompt, Proposal, Rollouts, Scores


class LocalPolicy:
    """`types.Policy` on one device of this process."""

    def __init__(self, spec: PolicySpec, device: str = "cpu"):
        self.worker = PolicyWorker(lambda: spec.load(device))

    async def rollout(self, prompt: Prompt, proposal: Proposal, seed: int) -> Rollouts:
        return await asyncio.wrap_future(self.worker.submit(prompt, proposal, seed))


class LocalReward:
    """`types.Reward` on one device of this process."""

    def __init__(self, spec: RewardSpec, device: str = "cpu"):
        self.worker = RewardWorker(lambda: spec.load(device))

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> Scores:
        return await asyncio.wrap_future(self.worker.submit(ScoreRequest(prompt, tuple(responses))))
