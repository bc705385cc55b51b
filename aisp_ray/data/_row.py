"""Values out of rows, and the sentences for values that are not what they should be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


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
    return _KINDS.get(type(value), type(value).__name__)


def replace_surrogates(value: Any) -> Any:
    """The JSON value with every lone surrogate, which no encoding can write, replaced by U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_surrogates(item) for item in value]
    return value
