r"""Anthropic's HH-RLHF: two whole dialogues a row that differ in the last assistant turn (Bai et al., 2022).

The prompt is the `chosen` dialogue without its last assistant turn. Turns start at "\n\nHuman:" and "\n\nAssistant:"
only. Differs from RE-Control's reading: a "Human:" inside a message starts no turn, two assistant turns at the end are
one reply, and repeated prompts are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aisp_ray.data._row import text_of
from aisp_ray.data._transcript import END, has_loose_marker, joined, read_turns, split_reply, write_turns
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.types import Message


@dataclass(frozen=True, kw_only=True)
class HhRlhf(DataSpec):
    """Settings of HH-RLHF: `path` holds rows with `chosen` and `rejected`. `subset` is a folder, e.g. harmless-base."""

    path: str = "Anthropic/hh-rlhf"  # file, folder, glob, URI (s3:// gs:// hf:// ...), hub name, or demo:<name>

    own_name = "hh_rlhf"
    subset_is_folder = True
    columns = ("chosen",)
    rules: ClassVar = {
        "marker_in_text": 'a "Human:" or "Assistant:" inside a message, not read as a turn',
        "prompts_differ": "chosen and rejected have different prompts; the chosen one is used",
        "split_reply": "several assistant turns at the end, cut off as one reply",
        "empty_reply": "the chosen reply is empty",
        "empty_turn": "an empty turn in the dialogue",
        "no_reply": "no assistant turn at the end to cut off",
        "preamble": "text before the first turn, read as a system turn",
    }

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        chosen, error = text_of(row, "chosen")
        if error:
            return Parsed(error=error)
        turns, reply = split_reply(read_turns(chosen))
        error = _unusable(turns)
        if error:
            return Parsed(text=chosen.strip(), error=error)
        rejected = row.get("rejected")
        other = split_reply(read_turns(rejected)) if isinstance(rejected, str) else None
        meta = {"preferred": joined(reply)} if reply else {}
        if other:
            meta["rejected"] = joined(other[1])
        rules = _rules(turns, reply, other[0] if other else turns)
        return Parsed(write_turns(turns), turns, meta, rules=rules)


def _rules(turns: tuple[Message, ...], reply: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[str, ...]:
    fired = {
        "marker_in_text": has_loose_marker(turns),
        "prompts_differ": turns != other,
        "split_reply": len(reply) > 1,
        "empty_reply": bool(reply) and not joined(reply),
        "empty_turn": any(not turn.content.strip() for turn in turns),
        "no_reply": not reply,
        "preamble": turns[0].role == "system",
    }
    return tuple(rule for rule, holds in fired.items() if holds)


def _unusable(turns: tuple[Message, ...]) -> str | None:
    if not any(turn.role == "user" for turn in turns):
        return f'the dialogue has no human turn (a turn starts with "\\n\\nHuman:", the reply with {END!r})'
    if not turns[-1].content.strip():
        return "the last human turn is empty"
    return None
