"""What a reward model is: settings that can be checked without torch, and a scorer that they load.

The settings are a frozen dataclass (the YAML's `_target_`); the scorer lives on one device in one thread and scores
many prompts' responses in one call, so that it can batch across prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aisp_ray.types import Prompt, Scores


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Responses of one prompt to score."""

    prompt: Prompt
    responses: tuple[str, ...]
    iteration: int = 0


class Scorer(Protocol):
    """A loaded reward model. One thread calls it; a batch holds requests of any prompts."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """Rewards in request order. A response that cannot be scored gets NaN and an error text, never an exception;
        an exception means that the scorer itself is broken."""

    def describe(self, prompt: Prompt) -> str | None:
        """The exact text this model reads for the prompt and the response "<response>"; None where there is none."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's actors live; shared by policy, reward and judge settings."""

    actors: tuple[int, int] = (1, 1)  # [min, max] replicas: starts at min, adopts more up to max
    num_gpus: float = 0.0  # GPUs of one actor; a fraction shares one, above 1 spreads the model over several
    num_cpus: float = 0.5  # CPUs of one actor that has no GPU
    threads: int = 1  # torch threads of one actor on the CPU
    label_selector: dict[str, str] | None = None  # Ray node labels that its nodes must carry


class RewardSpec(Protocol):
    """The settings of a reward model. `load` runs on the actor; everything before it runs on the driver."""

    placement: Placement

    def check(self) -> list[str]:
        """What can be said to be wrong before loading (missing files, unknown template), a sentence each."""

    def load(self, device: str) -> Scorer: ...
