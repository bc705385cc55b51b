"""The rows of each format, made of one prompt's pool: the columns that TRL's trainers take, and their origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aisp_ray.metrics._words import words
from aisp_ray.report.export.drops import Drops
from aisp_ray.report.export.pools import PromptPool, Response
from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.rejudge import messages_of


@dataclass(frozen=True, slots=True)
class Made:
    """One row of the data set before filters."""

    pool: PromptPool
    chosen: Response  # or the completion
    rejected: Response | None = None  # None where the format has no pairs

    @property
    def score(self) -> float:
        """What `top_k_overall` ranks by: the margin of a pair, the reward of a completion."""
        return self.chosen.reward - (self.rejected.reward if self.rejected else 0.0)


def make_rows(pool: PromptPool, settings: ExportSettings, drops: Drops | None = None) -> list[Made]:
    """The rows of a prompt; the filters on responses are counted in `drops`."""
    ranked = distinct(pool.responses, settings, drops)
    if settings.format == "preference":
        return list(_pairs(pool, ranked, settings))
    return [Made(pool, response) for response in (ranked[:1] if settings.format == "sft" else ranked)]


def _pairs(pool: PromptPool, ranked: list[Response], settings: ExportSettings) -> Iterator[Made]:
    """The best responses against the worst, or against the plain policy's answer; none is in two pairs.

    With a length ratio the rejected response is the worst one whose length fits.
    """
    if settings.rejected == "base":
        low = distinct([pool.first] if pool.first else [], settings)
    else:
        low = ranked[::-1][: len(ranked) // 2]
    for chosen in ranked[: min(settings.pairs, len(low))]:
        lower = [one for one in low if one.reward < chosen.reward and one.text != chosen.text]
        fits = [one for one in lower if _match(chosen, one, settings.length_ratio)]
        if fits:
            low.remove(fits[0])
            yield Made(pool, chosen, fits[0])


def _match(chosen: Response, rejected: Response, ratio: float | None) -> bool:
    if ratio is None:
        return True
    one, other = len(words(chosen.text)), len(words(rejected.text))
    return max(one, other) <= ratio * min(one, other)


def distinct(responses: Sequence[Response], settings: ExportSettings, drops: Drops | None = None) -> list[Response]:
    """Usable responses, best first, each text once (its first draw); ties stay in the order of drawing."""
    first: dict[str, Response] = {}
    for response in responses:
        unfit = unfit_for(response, settings)
        if unfit is None:
            first.setdefault(response.text, response)
        elif drops is not None:
            drops.response(unfit)
    return sorted(first.values(), key=lambda response: -response.reward)


def unfit_for(response: Response, settings: ExportSettings) -> str | None:
    """The filter that a response does not pass; None where it passes all."""
    if not response.text.strip():
        return "empty"
    if settings.complete and response.finish_reason == "length":
        return "complete"
    if settings.min_words is None and settings.max_words is None:
        return None
    length = len(words(response.text))
    if length < (settings.min_words or 0):
        return "min_words"
    return "max_words" if settings.max_words is not None and length > settings.max_words else None


# ---------------------------------------------------------------- as columns


def as_row(made: Made, settings: ExportSettings) -> dict[str, Any]:
    """The columns of `schema_of`."""
    prompt, chosen = made.pool, made.chosen
    origin = {"prompt_id": prompt.prompt_id, "dataset": prompt.dataset}
    row: dict[str, Any] = {"prompt": asked(prompt.prompt, settings.messages)}
    if made.rejected is not None:
        return row | {
            "chosen": said(chosen.text, settings.messages),
            "rejected": said(made.rejected.text, settings.messages),
            "reward_chosen": chosen.reward,
            "reward_rejected": made.rejected.reward,
            "method_chosen": chosen.method,
            "method_rejected": made.rejected.method,
            **origin,
        }
    row |= {
        "completion": said(chosen.text, settings.messages),
        "reward": chosen.reward,
        "method": chosen.method,
        **origin,
    }
    if settings.format == "candidates":
        row |= {name: getattr(chosen, name) for name in ("iteration", "particle", "finish_reason", "logprob")}
    return row


def asked(prompt: str, messages: bool) -> Any:
    """A prompt as TRL takes it: chat messages (a text with Human and Assistant turns is taken apart), or the text."""
    if not messages:
        return prompt
    return [{"role": turn.role, "content": turn.content} for turn in messages_of(prompt)]


def said(text: str, messages: bool) -> Any:
    """A response as TRL takes it."""
    return [{"role": "assistant", "content": text}] if messages else text


def schema_of(settings: ExportSettings) -> pa.Schema:
    """Columns and types of a format, the same for every shard."""
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    text = pa.list_(turn) if settings.messages else pa.string()
    names = {
        "preference": {
            **dict.fromkeys(("prompt", "chosen", "rejected"), text),
            **dict.fromkeys(("reward_chosen", "reward_rejected"), pa.float64()),
            **dict.fromkeys(("method_chosen", "method_rejected"), pa.string()),
        },
        "sft": {"prompt": text, "completion": text, "reward": pa.float64(), "method": pa.string()},
        "candidates": {
            **{"prompt": text, "completion": text, "reward": pa.float64(), "method": pa.string()},
            **{"iteration": pa.int64(), "particle": pa.int64(), "finish_reason": pa.string(), "logprob": pa.float64()},
        },
    }[settings.format]
    return pa.schema({**names, "prompt_id": pa.string(), "dataset": pa.string()})
