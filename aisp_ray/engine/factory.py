"""Which engine steps a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aisp_ray.engine.base import Engine


def build_engine(
    model: Any,
    kind: str = "plain",
    slots: int | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    max_new_tokens: int = 128,
    verify: bool = True,
) -> Engine:
    """An engine for a loaded causal language model. `kind` is "plain" or "fast"; see `engine.base.Engine`."""
    from aisp_ray.engine.plain import PlainEngine

    if kind == "plain":
        return PlainEngine(model, decode)
    raise ValueError(f"engine {kind!r} is not known; it is plain")
