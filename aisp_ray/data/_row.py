"""Values out of rows, and the sentences for values that are not what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_of(row: Mapping[str, Any], column: str) -> tuple[str, str | None]:
    """(the column's text, why there is none)."""
    value = row.get(column)
    if isinstance(value, str):
        return (value, None) if value.strip() else ("", f"column {column!r} is empty")
    if column not in row:
        return "", f"the row has no column {column!r}; its columns are {', '.join(map(str, row)) or 'none'}"
    return "", f"column {column!r} holds {kind_of(value)}, not text"


def kind_of(value: object) -> str:
    """A value's kind in words."""
    words = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return words.get(type(value), type(value).__name__)


def replace_surrogates(value: Any) -> Any:
    """The JSON value with every lone surrogate, which no encoding can write, replaced by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if _has_surrogate(value) else value
    if isinstance(value, Mapping):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_surrogates(item) for item in value]
    return value


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
