"""What a policy is: settings that can be checked without torch, and a loaded model that an engine steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from aisp_ray.engine.base import Engine, RolloutRequest
from aisp_ray.types import Placement, Prompt, Proposal, Rollouts


class LoadedPolicy(Protocol):
    """A policy on its device. One thread uses it."""

    engine: Engine

    def request(self, prompt: Prompt, proposal: Proposal, seed: int) -> RolloutRequest:
        """The proposal as work for the engine: template, token ids, stop rules, limits.

        Raises:
            DataError: the prompt itself cannot be used (empty, longer than the context).
        """

    def finish(self, rollouts: Rollouts) -> Rollouts:
        """Rollouts with their texts: decoded, cut at the stop strings."""

    def describe(self, prompt: Prompt) -> str:
        """The exact text the model reads for this prompt."""


@dataclass(frozen=True, kw_only=True)
class PolicySpec(Placement, ABC):
    """The settings of a policy: checked on the driver, loaded on the actor."""

    @property
    def slots(self) -> int | None:
        """Rows that its engine steps at once; None: not known."""
        return None

    @property
    def max_new_tokens(self) -> int | None:
        """The longest response it gives, in tokens; None: not known."""
        return None

    def check(self) -> list[str]:
        """What can be said to be wrong before loading, a sentence each."""
        return []

    def pinned(self) -> PolicySpec:
        """These settings with every version that is not said yet written in: what the manifest keeps."""
        return self

    def announcement(self) -> str | None:
        """One line for the start of a run: the model, and what was chosen for this machine."""
        return None

    @abstractmethod
    def load(self, device: str) -> LoadedPolicy:
        """The policy on "cpu" or "cuda". Heavy imports happen here."""
