"""What a reward model is: settings that can be checked without torch, and a scorer that they load.

The settings are a frozen dataclass (the YAML's `_target_`); the scorer lives on one device in one thread and scores
many prompts' responses in one call, so that it can batch across prompts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from aisp_ray.types import Placement, Prompt, Scores


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Responses of one prompt to score."""

    prompt: Prompt
    responses: tuple[str, ...]


class Scorer(ABC):
    """A loaded reward model. One thread calls it; a batch holds requests of any prompts."""

    max_requests: int | None = None  # how many it wants in one call; 1: they gain nothing from each other; None: any

    @abstractmethod
    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """Rewards in request order. A response that cannot be scored gets NaN and an error text, never an exception;
        an exception means that the scorer itself is broken, or that a service it talks to is away (`errors.is_away`),
        which a run waits for."""

    def describe(self, prompt: Prompt) -> str | None:
        """The exact text this model reads for the prompt and the response "<response>"; None where there is none."""
        return None

    def stats(self) -> dict[str, float]:
        """Counters since the start, by name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class RewardSpec(Placement, ABC):
    """The settings of a reward model: checked on the driver without torch, loaded on the actor."""

    def check(self, where: str = "reward") -> list[str]:
        """What can be said to be wrong before loading (missing files, unknown template), a sentence each.

        where: what the command calls these settings, reward or judges.NAME, so that a sentence names the right key.
        """
        return []

    def pinned(self, where: str = "reward") -> RewardSpec:
        """These settings with every version that is not said yet written in: what the manifest keeps."""
        return self

    @abstractmethod
    def load(self, device: str) -> Scorer:
        """The scorer on "cpu" or "cuda". Heavy imports happen here."""
