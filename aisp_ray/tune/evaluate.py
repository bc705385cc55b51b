"""Settings on prompts: from disk where they were measured before, else by the models that all trials share."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aisp_ray.driver import Driver
from aisp_ray.ledger import Task, row_of
from aisp_ray.methods.base import Method
from aisp_ray.plan import describe
from aisp_ray.tune.objective import Objective
from aisp_ray.tune.store import Evaluations, setting_hash
from aisp_ray.types import Prompt


class Evaluator:
    """Values of methods on prompts. The driver's policy, reward and judges serve all trials and prompts at once."""

    def __init__(self, driver: Driver, store: Evaluations, objective: Objective, run: Mapping[str, Any], every: float):
        self.driver = driver
        self.driver.hopeless = math.inf  # a setting that the method cannot run has no value; the others go on
        self.store = store
        self.objective = objective
        self.run = run  # run_id, config_hash, seed of the rows
        self.every = every  # seconds between two part files
        self.num_asked = 0  # (setting, prompt) pairs that were asked for, on disk or not

    async def measure(self, methods: Mapping[int, Method], prompts: Sequence[Prompt]) -> dict[int, list[float]]:
        """The objective of every method on every prompt, in prompt order; NaN where there is none."""
        described = {number: describe(method) for number, method in methods.items()}
        hashes = {number: setting_hash(values) for number, values in described.items()}
        self.num_asked += len(methods) * len(prompts)
        # two trials of one setting are one evaluation; prompt by prompt, so that trials share a prompt's prefix
        missing: dict[tuple[str, str], Task] = {}
        for prompt in prompts:
            for number, method in methods.items():
                if self.store.get(hashes[number], prompt) is None:
                    missing.setdefault((hashes[number], prompt.prompt_id), Task(prompt, hashes[number], method))
        by_hash = {hashes[number]: values for number, values in described.items()}
        await self._run(list(missing.values()), by_hash)
        return {
            number: [self._value(setting, prompt) for prompt in prompts] for number, setting in hashes.items()
        }  # fmt: skip

    def _value(self, setting: str, prompt: Prompt) -> float:
        row = self.store.get(setting, prompt)
        assert row is not None
        return self.objective(row)

    async def _run(self, tasks: Sequence[Task], described: Mapping[str, Mapping[str, Any]]) -> None:
        async def stream() -> AsyncIterator[Task]:
            for task in tasks:
                yield task

        loop = asyncio.get_running_loop()
        written = loop.time()
        try:
            async for outcome in self.driver.run(stream()):
                setting = outcome.task.name
                self.store.add(setting, described[setting], row_of(outcome, self.run))
                if loop.time() - written > self.every:
                    self.store.flush()
                    written = loop.time()
        except BaseException:
            with contextlib.suppress(Exception):  # what ended it is to be said, and not that this failed too
                self.store.flush()
            raise
        self.store.flush()
