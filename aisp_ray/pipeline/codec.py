"""Frozen dataclasses as JSON and back, for snapshots. Non-finite floats and tuples survive the round trip.

The JSON lies in a folder that others may write to: only dataclasses of this package, and of packages that the
configured methods come from, are made from it, and nothing foreign is imported for it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Collection
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


def decode(value: Any, packages: Collection[str] = ()) -> Any:
    """What `encode` was given (lists come back as tuples).

    packages: those, beside this one, whose dataclasses may be in it.

    Raises:
        ValueError: it holds what `encode` does not write, another class, or one whose fields have changed.
    """
    if isinstance(value, list):
        return tuple(decode(item, packages) for item in value)
    if not isinstance(value, dict):
        return value
    try:
        kind = value["@"]
        if kind == "float":
            return float(value["value"])
        if kind == "frozenset":
            return frozenset(decode(item, packages) for item in value["items"])
        if kind == "dict":
            return {decode(key, packages): decode(item, packages) for key, item in value["items"]}
        fields = {name: decode(item, packages) for name, item in value.items() if name != "@"}
        return _class_of(kind, packages)(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the snapshot was made by another version: {value.get('@')!r}: {error!r}") from error


def _class_of(kind: str, packages: Collection[str]) -> type:
    """The dataclass "module:name". Raises ValueError for anything else."""
    module, _, name = kind.partition(":")
    package, cls = module.partition(".")[0], None
    if package == __name__.partition(".")[0]:
        cls = locate(kind)
    elif package in packages and module in sys.modules:
        cls = vars(sys.modules[module]).get(name)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"{kind!r} in the snapshot is no dataclass of this run")
    return cls
