"""Any Python function as a reward: `reward=callable reward.target=my_package.scores:helpfulness`."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aisp_ray.config import locate
from aisp_ray.errors import is_away
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.types import Prompt, Scores


@dataclass(frozen=True, kw_only=True)
class CallableReward(RewardSpec):
    """Settings of a scorer written in Python.

    The target is called as `target(prompt, responses)` with a `types.Prompt` and a list of texts, and returns as many
    numbers. A class is made once, with `arguments`, and its instance called; a function gets `arguments` as keywords.
    None or NaN means that a response has no reward. The function must not depend on what it was asked before, or runs
    can no longer be repeated.
    """

    target: str  # package.module:name of a function or class, importable wherever the reward model runs
    arguments: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the function, or of making the class

    def check(self, where: str = "reward") -> list[str]:
        try:
            target = locate(self.target)
        except ValueError as error:
            return [f"{where}.target: {error}"]
        return [] if callable(target) else [f"{where}.target={self.target} is not something to call"]

    def load(self, device: str) -> CallableScorer:
        target = locate(self.target)
        if inspect.isclass(target):
            return CallableScorer(self.target, target(**self.arguments), {})
        return CallableScorer(self.target, target, self.arguments)


@dataclass(frozen=True, kw_only=True)
class FunctionReward(RewardSpec):
    """A function of this process as a reward model, called as `CallableReward`'s target is."""

    function: Callable[..., Sequence[float | None]]

    def check(self, where: str = "reward") -> list[str]:
        return [] if callable(self.function) else [f"{where} is a {type(self.function).__name__}, not a function"]

    def load(self, device: str) -> CallableScorer:
        return CallableScorer(getattr(self.function, "__name__", "the function"), self.function, {})


class CallableScorer(Scorer):
    """`rewards.base.Scorer` around a function. Where it fails on a batch, its responses are scored one by one, so that
    an exception costs the responses at fault only. One that says that a service is away comes through."""

    max_requests = 1

    def __init__(self, name: str, function: Callable[..., Sequence[float]], arguments: dict[str, Any]):
        self.name = name
        self.function = function
        self.arguments = arguments

    def describe(self, prompt: Prompt) -> str | None:
        return None

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Scores:
        started = time.perf_counter()
        distinct = list(dict.fromkeys(request.responses))
        found = dict(zip(distinct, self._values(request.prompt, distinct), strict=True))
        rewards: list[float] = []
        errors: list[str | None] = []
        for particle, response in enumerate(request.responses):
            value = found[response]
            good = isinstance(value, float) and math.isfinite(value)
            where = f"prompt {request.prompt.prompt_id}, particle {particle}"
            rewards.append(value if good else math.nan)
            errors.append(
                None if good else f"{where}: {self.name} {value if isinstance(value, str) else f'returned {value}'}"
            )
        return Scores(tuple(rewards), tuple(errors), len(distinct), time.perf_counter() - started)

    def _values(self, prompt: Prompt, responses: list[str]) -> list[float | str]:
        """A reward for each response, or a text that says how the function failed."""
        try:
            values = list(self.function(prompt, list(responses), **self.arguments))
            if len(values) != len(responses):
                raise ValueError(f"it returned {len(values)} rewards for {len(responses)} responses")
            return [math.nan if value is None else float(value) for value in values]
        except Exception as error:
            if is_away(error):  # no response's fault: the run waits
                raise
            if len(responses) == 1:
                return [f"failed with {type(error).__name__}: {error}"]
        return [self._values(prompt, [response])[0] for response in responses]
