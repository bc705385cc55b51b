"""Preference pairs as token rows: what the reward model reads, two replies after one shared prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aisp_ray.data.hh_rlhf import HhRlhf
from aisp_ray.rewards._templates import CHAT, make_renderer
from aisp_ray.rewards._tokens import encode
from aisp_ray.types import Prompt


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference pair. prompt: the tokens both dialogues begin with; chosen, rejected: how each continues."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def read_pairs(path: str | Path, tokenizer: Any, prompt_tokens: int, reply_tokens: int) -> Iterator[Pair]:
    """The pairs of an HH-RLHF file, tokenised as `aisp_ray.rewards` does.

    A longer prompt keeps its first token and its end. A pair is left out where its prompts differ, its replies are the
    same or one of them is longer than `reply_tokens`.
    """
    renderer = make_renderer(CHAT, tokenizer)
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        parsed = HhRlhf(path=str(path)).parse(json.loads(line))
        replies = [str(parsed.meta.get(name) or "") for name in ("preferred", "rejected")]
        if parsed.error or not all(replies) or "prompts_differ" in parsed.rules:
            continue
        prompt = Prompt("pair/train/00000000", 0, "pair", parsed.text, parsed.messages)
        chosen, rejected = (
            row.ids if row else () for row in encode(tokenizer, renderer, prompt, replies, 1 << 30).rows
        )
        if chosen == rejected:
            continue
        pair = _split(chosen, rejected, prompt_tokens)
        if max(len(pair.chosen), len(pair.rejected)) <= reply_tokens:
            yield pair


def _split(chosen: tuple[int, ...], rejected: tuple[int, ...], prompt_tokens: int) -> Pair:
    """Two rows as what they share, cut to `prompt_tokens`, and the rest of each, which is never empty."""
    shortest = min(len(chosen), len(rejected)) - 1
    same = next((at for at in range(shortest) if chosen[at] != rejected[at]), shortest)
    prompt = chosen[:same]
    if same > prompt_tokens:
        prompt = prompt[:1] + prompt[1 - prompt_tokens :]
    return Pair(prompt, chosen[same:], rejected[same:])
