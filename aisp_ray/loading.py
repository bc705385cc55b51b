"""Objects by dotted path: the registry is the path itself."""

from __future__ import annotations

import importlib
from typing import Any


def locate(path: str) -> Any:
    """The object at "package.module:name" or "package.module.name".

    Raises:
        ValueError: the path does not lead to an object; says which part failed.
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name:
        raise ValueError(f"{path!r} is not a path to an object; write it as package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path!r}: there is no module {error.name!r} on the Python path") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise ValueError(f"{path!r}: module {module_name!r} has no {name!r}") from error
