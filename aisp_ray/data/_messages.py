"""Chat messages as they are found in datasets: role/content, from/value, content in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aisp_ray.data._row import kind_of
from aisp_ray.types import Message

_ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip


def read_messages(value: Any) -> tuple[tuple[Message, ...], str | None]:
    """(the messages, why they cannot be read)."""
    if not isinstance(value, (list, tuple)) or not value:
        return (), f"the messages are {kind_of(value)}, not a list of turns" if value != [] else "there is no message"
    turns = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, Mapping):
            return (), f"message {number} is {kind_of(item)}, not a table with role and content"
        role = _ROLES.get(str(item.get("role", item.get("from"))).lower())
        content = _text(item.get("content", item.get("value")))
        if role is None:
            return (), f"message {number} has the role {item.get('role', item.get('from'))!r}"
        if content is None:
            return (), f"message {number} holds {kind_of(item.get('content', item.get('value')))}, not text"
        turns.append(Message(role, content))
    return tuple(turns), None


def _text(content: Any) -> str | None:
    """The text of a content; None if a part of it is not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)) or not content:
        return None
    parts = [_part(part) for part in content]
    return "".join(part for part in parts if part is not None) if None not in parts else None


def _part(part: Any) -> str | None:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
    return text if isinstance(text, str) else None
