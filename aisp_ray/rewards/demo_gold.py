"""The true score of the demo world as a reward model: what the demo's learned rewards only estimate."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.types import Prompt, Scores


@dataclass(frozen=True, kw_only=True)
class DemoGold(RewardSpec):
    """Settings of the demo world's gold score. It has none of its own."""

    def load(self, device: str) -> DemoGoldScorer:
        return DemoGoldScorer()


class DemoGoldScorer(Scorer):
    """`rewards.base.Scorer` of the gold score; prompts from outside the demo world have none."""

    max_requests = 1

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        return [self._score(request) for request in requests]

    def describe(self, prompt: Prompt) -> str | None:
        return None

    def _score(self, request: ScoreRequest) -> Scores:
        from aisp_ray.demo.world import gold_score

        started = time.perf_counter()
        rewards = tuple(float(gold_score(request.prompt.text, response)) for response in request.responses)
        text = f"prompt {request.prompt.prompt_id}: the demo world has no gold score for it"
        errors = tuple(None if math.isfinite(reward) else text for reward in rewards)
        return Scores(rewards, errors, seconds=time.perf_counter() - started)
