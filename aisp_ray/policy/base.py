"""What a policy is: settings that can be checked without torch, and a loaded model that an engine steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aisp_ray.types import ASKS, Placement, Prompt, Proposal, Rollouts


class Stepped(Protocol):
    """What a worker needs of an `engine.base.Engine`: requests in, rollouts out, by one thread."""

    @property
    def fingerprint(self) -> dict[str, Any]: ...

    def submit(self, request: Any) -> int: ...

    def step(self) -> list[tuple[int, Rollouts | Exception]]: ...

    def stats(self) -> dict[str, float]: ...


class LoadedPolicy(Protocol):
    """A policy on its device. One thread uses it."""

    @property
    def engine(self) -> Stepped: ...

    def request(self, prompt: Prompt, proposal: Proposal, seed: int) -> Any:
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

    @property
    def gives(self) -> frozenset[str]:
        """What a proposal may ask of it beyond plain sampling: names of `types.ASKS`."""
        return frozenset(ASKS)

    def refusals(self, methods: Mapping[str, Any]) -> list[str]:
        """A sentence for each method that asks for more than this policy gives."""
        found = []
        for name, method in methods.items():
            lacking = [ASKS[ask] for ask in ASKS if ask in getattr(method, "asks_for", frozenset()) - self.gives]
            if lacking:
                found.append(
                    f"method.{name} needs {' and '.join(lacking)}, which {type(self).__name__} does not give; set "
                    "policy to one whose model we load (policy=hf), or method to one that only samples, such as "
                    "best_of_n, blockwise or particle_filter"
                )
        return found

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
