"""Policies and reward models in this process, behind the protocols the driver speaks. No Ray.

policy = LocalPolicy(policy_spec)
reward = LocalReward(reward_spec)
progress = asyncio.run(search(Task(prompt, "aisp", Aisp(n=16)), policy, reward, seed=0))
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence

from aisp_ray.cluster.models import ModelPlan, Models
from aisp_ray.policy.base import PolicySpec
from aisp_ray.rewards.base import RewardSpec, ScoreRequest
from aisp_ray.types import Placement, Prompt, Proposal, Rollouts, Scores
from aisp_ray.worker import PolicyWorker, RewardWorker


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


@contextlib.asynccontextmanager
async def load_here(plan: ModelPlan, in_flight: int) -> AsyncIterator[Models]:
    """The models of a plan in this process; their threads end on leaving."""
    quiet_libraries()
    with contextlib.ExitStack() as threads:

        def reward_of(spec: RewardSpec) -> LocalReward:
            reward = LocalReward(spec, device_of(spec))
            threads.callback(reward.worker.close)
            return reward

        policy = LocalPolicy(plan.policy, device_of(plan.policy))
        threads.callback(policy.worker.close)
        judges = {name: reward_of(spec) for name, spec in plan.judges.items()}
        yield Models(policy, reward_of(plan.reward), judges, in_flight)


def device_of(spec: Placement) -> str:
    return "cuda" if spec.num_gpus > 0 else "cpu"


def quiet_libraries() -> None:
    """No bars and warnings of the model libraries. Before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
