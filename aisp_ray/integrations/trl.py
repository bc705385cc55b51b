"""Completions for TRL's online trainers that a method of this package draws, with the policy as it is being trained.

    from aisp_ray.integrations.trl import SearchRollouts, reward_of_search

    trainer = GRPOTrainer(model, reward_of_search, args=args, train_dataset=prompts, processing_class=tokenizer,
                          rollout_func=SearchRollouts(method=BestOfN(n=8, kappa=1), reward=config.build(...)))

One search per prompt; `choose` says which of its draws are the prompt's group. TRL's advantages compare the rewards
within a group, so a spread of them teaches more than the best alone.

What a steered or selected completion says is not a sample of the policy: its gradient is off-policy, as in any training
on search results (expert iteration, arXiv 1705.08439). No sampling log-probabilities are returned, so TRL takes the
policy's own. `rollout_func` is experimental in TRL (1.16).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aisp_ray.cluster.local import LocalReward
from aisp_ray.driver import Driver
from aisp_ray.ledger import Progress, Task
from aisp_ray.methods.base import Method
from aisp_ray.policy.given import policy_of
from aisp_ray.rewards.base import RewardSpec
from aisp_ray.types import Message, Prompt, Proposal, Rollout, Rollouts, Scores
from aisp_ray.worker import PolicyWorker, beside_a_loop

CHOICES = ("spread", "best", "first")
SEARCH_REWARD = "search_reward"  # the field that `reward_of_search` reads


@dataclass(kw_only=True)
class SearchRollouts:
    """A `rollout_func`: completions of TRL's prompts from searches of `method` under `reward`."""

    method: Method
    reward: RewardSpec
    choose: str = "spread"  # spread: evenly over the ranked draws | best: the best ones | first: in drawing order
    policy: Mapping[str, Any] = field(default_factory=dict)  # settings of policy.causal_lm.CausalLM
    seed: int = 0
    in_flight: int = 16  # searches at a time
    _scorer: LocalReward | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.choose not in CHOICES:
            raise ValueError(f"choose is {self.choose!r}; it is one of {', '.join(CHOICES)}")

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """TRL's contract: prompts, each repeated for every member of its group -> token ids and the search's rewards.

        Raises:
            ValueError: a search drew fewer distinct completions with a reward than the group has members.
        """
        groups: dict[str, list[int]] = {}
        for at, prompt in enumerate(prompts):
            groups.setdefault(repr(prompt), []).append(at)
        step = int(trainer.state.global_step)
        asked = [_prompt(prompts[places[0]], ordinal, step) for ordinal, places in enumerate(groups.values())]
        ids, drawn = self._search(asked, trainer)
        made: list[Any] = [None] * len(prompts)  # (prompt's ids, completion's ids, reward) of each place
        for prompt, places in zip(asked, groups.values(), strict=True):
            for at, (item, reward) in zip(places, self._group(prompt, drawn, len(places)), strict=True):
                made[at] = (ids[prompt.ordinal], list(item.token_ids), reward)
        prompt_ids, completion_ids, rewards = (list(column) for column in zip(*made, strict=True))
        found = {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}
        return {**found, SEARCH_REWARD: rewards}

    def _search(self, prompts: Sequence[Prompt], trainer: Any) -> tuple[list[list[int]], dict[int, list[Any]]]:
        """Token ids of each prompt, and what was drawn for it, by its ordinal."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        # anew each time: an engine may keep weights in a form of its own, and these have changed
        spec = policy_of(model, trainer.processing_class, self.policy, here=True)
        worker = PolicyWorker(lambda: spec.load(str(model.device)))
        drawn: dict[int, list[tuple[Rollout, float]]] = {prompt.ordinal: [] for prompt in prompts}

        def watch(task: Task, progress: Progress, rollouts: Rollouts, scores: Scores) -> None:
            drawn[task.prompt.ordinal] += list(zip(rollouts.items, scores.rewards, strict=True))

        try:
            self._scorer = self._scorer or LocalReward(self.reward, "cuda" if self.reward.num_gpus else "cpu")
            beside_a_loop(lambda: asyncio.run(self._drive(prompts, worker, watch)))
            return [list(worker.policy.request(p, Proposal(0, 1), self.seed).prompt_ids) for p in prompts], drawn
        finally:
            worker.close()
            model.train(training)

    async def _drive(self, prompts: Sequence[Prompt], worker: PolicyWorker, watch: Any) -> None:
        assert self._scorer is not None
        driver = Driver(_Drawing(worker), self._scorer, {}, self.seed, self.in_flight)
        driver.watch = watch
        async for outcome in driver.run(_tasks(prompts, self.method)):
            if outcome.error is not None:
                raise ValueError(f"the search for {outcome.task.prompt.text[:60]!r} failed: {outcome.error}")

    def _group(self, prompt: Prompt, drawn: Mapping[int, list[Any]], size: int) -> list[tuple[Rollout, float]]:
        different = {item.token_ids: (item, reward) for item, reward in reversed(drawn[prompt.ordinal])}
        usable = [pair for pair in reversed(different.values()) if math.isfinite(pair[1]) and pair[0].token_ids]
        if len(usable) < size:
            raise ValueError(
                f"the search drew {len(usable)} different completions with a reward for {prompt.text[:60]!r}, and the "
                f"group has {size}; raise the method's n or kappa, or lower num_generations"
            )
        if self.choose == "first":
            return usable[:size]
        ranked = sorted(usable, key=lambda pair: -pair[1])
        if self.choose == "best":
            return ranked[:size]
        return [ranked[at] for at in np.linspace(0, len(ranked) - 1, size).round().astype(int)]


def reward_of_search(completions: Sequence[Any], **fields: Any) -> list[float]:
    """TRL's reward function for these rollouts: what the search's reward model gave."""
    if SEARCH_REWARD not in fields:
        raise ValueError("reward_of_search needs the rewards of a search; give the trainer rollout_func=SearchRollouts")
    return [float(value) for value in fields[SEARCH_REWARD]]


class _Drawing:
    """`types.Policy` around a worker."""

    def __init__(self, worker: PolicyWorker):
        self.worker = worker

    async def rollout(self, prompt: Prompt, proposal: Proposal, seed: int) -> Rollouts:
        return await asyncio.wrap_future(self.worker.submit(prompt, proposal, seed))


def _prompt(prompt: Any, ordinal: int, step: int) -> Prompt:
    """A text or a list of turns, named by step and place, so that every step draws anew."""
    turns = () if isinstance(prompt, str) else tuple(Message(turn["role"], turn["content"]) for turn in prompt)
    return Prompt(
        f"trl/{step}/{ordinal:08d}", ordinal, "trl", prompt if isinstance(prompt, str) else turns[-1].content, turns
    )


async def _tasks(prompts: Sequence[Prompt], method: Method) -> AsyncIterator[Task]:
    for prompt in prompts:
        yield Task(prompt, type(method).__name__.lower(), method)
