"""Preference pairs in TRL's formats: `prompt` with `chosen` and `rejected`, or the two alone with a common beginning.

Texts or chat messages. The preferred reply goes to `meta["preferred"]`, the other to `meta["rejected"]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aisp_ray.data._messages import decoded, read_messages
from aisp_ray.data._row import kind_of
from aisp_ray.data._transcript import is_dialogue, joined, read_turns, split_reply, write_turns
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.types import Message

Turns = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Preference(DataSpec):
    """Settings of a set of preference pairs; `prompt`-only rows and `completion` with `label` are read too."""

    split: str = "train"  # split of a hub set or folder; part of the prompt ids
    dialogues: bool = True  # read a text that starts with "Human:" as a dialogue of turns

    own_name = "preference"
    columns = ("prompt", "chosen")
    rules: ClassVar = {
        "implicit_prompt": "no column prompt; the prompt is what chosen and rejected have in common",
        "no_reply": "no preferred reply",
    }

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        try:
            turns, replies = self._explicit(row) if row.get("prompt") is not None else self._implicit(row)
        except ValueError as error:
            return Parsed(error=str(error))
        if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
            return Parsed(error="the prompt does not end with a user turn that holds text")
        text = turns[0].content if len(turns) == 1 else write_turns(turns)
        fired = {"implicit_prompt": row.get("prompt") is None, "no_reply": "preferred" not in replies}
        return Parsed(text, turns, replies, rules=tuple(rule for rule, holds in fired.items() if holds))

    def _explicit(self, row: Mapping[str, Any]) -> tuple[Turns, dict[str, str]]:
        turns, more = split_reply(self._turns(row["prompt"], "prompt"))
        if more:
            raise ValueError("the prompt ends with an assistant turn")
        replies = {}
        for name, column, given in _replies(row):
            value, unreadable = decoded(given)
            if unreadable:
                raise ValueError(f"column {column!r} {unreadable}")
            said = (Message("assistant", value),) if isinstance(value, str) else _messages(value, column, reply=True)
            if reply := joined(_tail(said, turns)):
                replies[name] = reply
        return turns, replies

    def _implicit(self, row: Mapping[str, Any]) -> tuple[Turns, dict[str, str]]:
        values: list[Any] = [row.get("chosen"), row.get("rejected")]
        plain = all(isinstance(value, str) and decoded(value) == (value, None) for value in values)
        if plain and not (self.dialogues and is_dialogue(values[0])):
            return _common_text(*values)
        turns, reply = split_reply(self._turns(values[0], "chosen"))
        replies = {"preferred": joined(reply)} if reply else {}
        if values[1] is not None:
            replies["rejected"] = joined(split_reply(self._turns(values[1], "rejected"))[1])
        return turns, replies

    def _turns(self, value: Any, column: str) -> Turns:
        """A text, messages, or messages written as a text, as turns; raises ValueError with the reason."""
        value, unreadable = decoded(value)
        if unreadable:
            raise ValueError(f"column {column!r} {unreadable}")
        if isinstance(value, str):
            if not value.strip():
                raise ValueError(f"column {column!r} is empty")
            return read_turns(value) if self.dialogues and is_dialogue(value) else (Message("user", value),)
        return _messages(value, column)


def _messages(value: Any, column: str, reply: bool = False) -> Turns:
    """Messages as turns; raises ValueError with the reason. reply: as `read_messages` takes it."""
    if not isinstance(value, list | tuple | Mapping):
        raise ValueError(f"column {column!r} holds {kind_of(value)}, not text or messages")
    turns, error = read_messages(value, reply)
    if error:
        raise ValueError(f"column {column!r}: {error}")
    return turns


def _replies(row: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(preferred or rejected, column, value) of the replies that a row has.

    Raises:
        ValueError: the label of a completion is neither true nor false.
    """
    found = [("preferred", "chosen", row.get("chosen")), ("rejected", "rejected", row.get("rejected"))]
    if row.get("completion") is not None and row.get("chosen") is None:
        good = _label(row.get("label"))
        found.append(("preferred" if good else "rejected", "completion", row["completion"]))
    return [(name, column, value) for name, column, value in found if value is not None]


def _label(value: Any) -> bool:
    """Whether a completion is wanted; without a label it is."""
    word = str(value).strip().lower()
    if word in ("true", "1", "1.0", "yes", "desirable", "good", "none", "", "nan"):
        return True
    if word in ("false", "0", "0.0", "-1", "no", "undesirable", "bad"):
        return False
    raise ValueError(f"column 'label' holds {value!r}, neither true nor false")


def _common_text(chosen: str, rejected: str) -> tuple[Turns, dict[str, str]]:
    """Two texts with one beginning, cut at the last space before they part."""
    shortest = min(len(chosen), len(rejected))
    common = chosen[: next((at for at in range(shortest) if chosen[at] != rejected[at]), shortest)]
    end = max(common.rfind(" "), common.rfind("\n")) + 1
    if not common[:end].strip():
        raise ValueError("chosen and rejected have no beginning in common, and there is no column prompt")
    replies = {"preferred": chosen[end:].strip(), "rejected": rejected[end:].strip()}
    return (Message("user", common[:end].rstrip()),), replies


def _tail(said: Sequence[Message], turns: Turns) -> Sequence[Message]:
    """The turns after the prompt, for rows whose replies repeat it."""
    return said[len(turns) :] if tuple(said[: len(turns)]) == turns else said
