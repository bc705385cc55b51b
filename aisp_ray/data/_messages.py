"""Chat messages as they are found in datasets: role/content, from/value, content in parts."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aisp_ray.data._row import kind_of
from aisp_ray.types import Message

_ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_TOOL_ROLES = ("tool", "function", "observation", "ipython", "tool_response", "function_call", "tool_call")


_WRITTEN = re.compile(r"""\s*\[?\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
_SPEAKERS = re.compile(r"""["'](?:role|from)["']\s*:""")


def read_messages(value: Any, reply: bool = False) -> tuple[tuple[Message, ...], str | None]:
    """(the messages, why they cannot be read).

    Of the turns after the last user turn, which are the reply, those without text (calls of tools, and what the tools
    returned) are empty assistant turns: a prompt does not need them.

    reply: whether they may be a reply alone, without the user turn that it answers.
    """
    if not isinstance(value, (list, tuple)) or not value:
        return (), f"the messages are {kind_of(value)}, not a list of turns" if value != [] else "there is no message"
    turns: list[Message] = []
    problem: str | None = None  # of the reply that began
    for number, item in enumerate(value, start=1):
        if not isinstance(item, Mapping):
            return (), f"message {number} is {kind_of(item)}, not a table with role and content"
        given = item.get("role", item.get("from"))
        role = _ROLES.get(str(given).lower())
        content = _text(item.get("content", item.get("value")))
        if problem and role in ("user", "system"):
            return (), problem
        if role is None or content is None:
            wrong = f"holds {kind_of(item.get('content', item.get('value')))}, not text"
            said = f"message {number} has the role {given!r}" if role is None else f"message {number} {wrong}"
            if not _in_reply(turns, given, item, reply):
                return (), said
            problem = problem or said
            role, content = "assistant", content if role else ""
        turns.append(Message(role, content or ""))
    return tuple(turns), None


def decoded(value: Any) -> tuple[Any, str | None]:
    """(the value, or the messages that a text holds as JSON or as Python writes them; why they cannot be read)."""
    if not isinstance(value, str) or not _WRITTEN.match(value) or not _SPEAKERS.search(value):
        return value, None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        found = _literal(value.strip())
        if found is None and value.lstrip().startswith("["):
            return value, f"looks like messages, but is not JSON: {error}"
    first = found[0] if isinstance(found, list) and found else found
    return (found, None) if isinstance(first, Mapping) and first.keys() & {"role", "from"} else (value, None)


def _literal(text: str) -> Any:
    """The value that Python wrote, as in a table that was saved as CSV; None for anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _in_reply(turns: Sequence[Message], role: Any, item: Mapping[str, Any], begun: bool) -> bool:
    """Whether a turn without text belongs to a reply: a call of tools, or what a tool returned.

    begun: whether the first turn may be part of a reply.
    """
    if not begun and not any(turn.role == "user" for turn in turns):
        return False
    if str(role).lower() in _TOOL_ROLES:
        return bool(turns) and turns[-1].role == "assistant"
    calls = any(item.get(name) for name in ("tool_calls", "function_call", "tools"))
    return _ROLES.get(str(role).lower()) == "assistant" and (calls or item.get("content") is None)


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
