r"""Dialogues written as one text: "\n\nHuman: ...\n\nAssistant: ...". Only these markers start a turn."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aisp_ray.types import Message

_MARKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_LOOSE = re.compile(r"(?:Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_TAGS = {"user": "Human", "assistant": "Assistant"}
END = "\n\nAssistant:"


def read_turns(text: str) -> tuple[Message, ...]:
    """The turns of a dialogue. A turn's content is exact, less one space after its marker.

    Text before the first marker is a system turn; a text without markers is one system turn, an empty one no turn.
    """
    parts = _MARKER.split(text)
    turns = [Message("system", parts[0].strip())] if parts[0].strip() else []
    for tag, content in zip(parts[1::2], parts[2::2], strict=True):
        turns.append(Message(_ROLES[tag], content.removeprefix(" ")))
    return tuple(turns)


def split_reply(turns: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(turns up to the last user turn, the assistant turns after it)."""
    end = len(turns)
    while end and turns[end - 1].role == "assistant":
        end -= 1
    return tuple(turns[:end]), tuple(turns[end:])


def joined(reply: Sequence[Message]) -> str:
    """The turns of a reply that hold text, as one text."""
    return "\n\n".join(text for turn in reply if (text := turn.content.strip()))


def write_turns(turns: Sequence[Message]) -> str:
    """The dialogue as one text that ends where the reply starts; `read_turns` gives the turns back."""
    parts = [turn.content if turn.role == "system" else f"\n\n{_TAGS[turn.role]}: {turn.content}" for turn in turns]
    return "".join(parts) + END


def is_dialogue(text: str) -> bool:
    """Whether the text starts with a human turn."""
    return text.startswith(("\n\nHuman:", "Human:"))


def has_loose_marker(turns: Sequence[Message]) -> bool:
    """Whether a turn holds a "Human:" or "Assistant:" that does not start a turn."""
    return any(_LOOSE.search(turn.content) for turn in turns)
