"""Frozen dataclasses as JSON and back, for snapshots. Non-finite floats and tuples survive the round trip."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from aisp_ray.config import locate


def encode(value: Any) -> Any:
    """JSON-ready form of scalars, tuples, mappings with string keys and (nested) dataclasses.

    Raises:
        TypeError: the value holds something else (a tensor, say), named with its type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"@": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, float) and not math.isfinite(value):
        return {"@": "float", "value": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, frozenset):
        return {"@": "frozenset", "items": sorted(encode(item) for item in value)}
    if isinstance(value, dict):
        return {"@": "dict", "items": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"cannot snapshot a {type(value).__name__}: states hold scalars, tuples, dicts and dataclasses")


def decode(value: Any) -> Any:
    """What `encode` was given (lists come back as tuples).

    Raises:
        ValueError: a dataclass is not importable any more or its fields changed.
    """
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value["@"]
    if kind == "float":
        return float(value["value"])
    if kind == "frozenset":
        return frozenset(decode(item) for item in value["items"])
    if kind == "dict":
        return {decode(key): decode(item) for key, item in value["items"]}
    cls = locate(kind)
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{kind!r} in the snapshot is not a dataclass")
    fields = {name: decode(item) for name, item in value.items() if name != "@"}
    try:
        return cls(**fields)
    except TypeError as error:
        raise ValueError(f"the snapshot was made by another version of {kind}: {error}") from error
