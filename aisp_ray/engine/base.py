"""The protocol of an engine, plain or fast: requests in, rollouts out, stepped by one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.errors import DataError
from aisp_ray.types import Proposal, Rollouts

Decode = Callable[[Sequence[int]], str]  # token ids of a response -> its text


@dataclass(frozen=True, slots=True)
class StopRules:
    """When a response ends: at one of `token_ids` (kept in token_ids, not in the text), or with a string of `strings`
    in its text (cut off from there on). Neither counts before `min_new_tokens`: a string must start behind the text of
    the first `min_new_tokens` - 1 tokens."""

    token_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()
    min_new_tokens: int = 0

    def string_start(self, text: str, token_ids: Sequence[int], decode: Decode) -> int | None:
        """Where in the text of these response tokens the first stop string starts that counts; None: there is none."""
        if not any(string in text for string in self.strings):
            return None
        begin = len(decode(token_ids[: self.min_new_tokens - 1])) if self.min_new_tokens > 1 else 0
        return min((at for string in self.strings if (at := text.find(string, begin)) >= 0), default=None)


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One proposal for one prompt, with everything an engine needs and nothing it must look up."""

    prompt_ids: tuple[int, ...]
    key: int  # 64 bits, `rng.prompt_key(run seed, prompt id)`: names the noise and the token draws
    proposal: Proposal
    max_new_tokens: int
    stop: StopRules
    particles: tuple[int, ...] | None = None  # which of the proposal's particles to draw; None: all

    def check(self, decode: Decode | None) -> None:
        """Raises ValueError for what no engine can serve; decode: what the engine makes text of token ids with."""
        if not self.prompt_ids:
            raise ValueError("the prompt has no tokens")
        if self.stop.strings and decode is None:
            raise ValueError("stop strings need a `decode` function")
        if isinstance(self.proposal.control, OpenLoop):
            self.proposal.control.factor(0)  # raises where its scale is no number yet
        if any(len(prefix) >= self.max_new_tokens for prefix in self.proposal.prefixes or ()):
            raise ValueError(f"a prefix to continue from is not shorter than max_new_tokens={self.max_new_tokens}")


def broken_logits(dtype: str, particle: int, position: int) -> DataError:
    """What a request ends with when the model's logits are no numbers any more."""
    fix = "" if dtype == "torch.float32" else "; policy.dtype=float32 has more room"
    return DataError(
        f"the policy's logits are NaN or infinite in {dtype} at token {position} of particle {particle}{fix}"
    )


class Engine(Protocol):
    """Steps many requests at once. Not thread-safe: one thread submits and steps."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Build, dtype, slots: equal fingerprints promise equal bits."""

    @property
    def longest_prompt(self) -> int | None:
        """Tokens of the longest prompt it takes; None: any length."""
        return None

    def submit(self, request: RolloutRequest) -> int:
        """Queue a request; returns its ticket. Raises ValueError for what this model cannot do."""

    def step(self) -> list[tuple[int, Rollouts | Exception]]:
        """Advance; returns the tickets that finished in this step."""

    @property
    def num_pending(self) -> int:
        """Requests submitted and not yet returned."""

    def stats(self) -> dict[str, float]:
        """Counters since the start: row_steps, useful_row_steps, prefix_hits, prefix_misses, kv_bytes ..."""
        return {}
