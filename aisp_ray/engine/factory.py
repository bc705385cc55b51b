"""Which engine steps a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from aisp_ray.engine.base import Engine

log = logging.getLogger(__name__)
KINDS = ("fast", "expanded", "plain")
LEAST_STACK = 16  # the check at load has prompts, too


def build_engine(
    model: Any,
    kind: str = "fast",
    slots: int | str | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    max_new_tokens: int = 128,
    longest_prompt: int | None = None,
    kernels: bool = True,
) -> Engine:
    """An engine for a loaded causal language model.

    kind: "fast" shares prompts and refills slots, and becomes "expanded" with one warning where the model does not
    allow that; "plain" is the reference. slots: rows decoded at once by the fast engine; None or "auto" chooses from
    free memory. decode: token ids to text, which only stop strings need. longest_prompt: tokens of a prompt that a tile
    on a GPU holds; None: as many as the fast engine chooses. kernels: the fast engine may use its own products on a CPU
    in float32.

    Before anything else it decodes a few tokens and compares them with the model's own forward.

    Raises:
        ValueError: an unknown kind or slot count, or a model whose logits are not those of its LM head.
    """
    if kind not in KINDS:
        raise ValueError(f"engine {kind!r} is not known; it is one of {', '.join(KINDS)}")
    from aisp_ray.engine.verify import verify_head

    engine = None
    if kind == "fast":
        stack = _stack(model, longest_prompt)
        engine = _fast(model, slots, decode, max_new_tokens, kernels=kernels, stack=stack)
    if engine is None:
        from aisp_ray.engine.expanded import ExpandedEngine
        from aisp_ray.engine.plain import PlainEngine

        engine = (PlainEngine if kind == "plain" else ExpandedEngine)(model, decode)
    verify_head(model, engine.head)
    return engine


def _stack(model: Any, longest_prompt: int | None) -> int | None:
    """`FastEngine`'s `stack`; None leaves it to the engine, which on a CPU takes prompts of any length."""
    if longest_prompt is None or model.device.type != "cuda":
        return None
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or longest_prompt
    return max(min(longest_prompt, context), LEAST_STACK)


def _fast(model: Any, *settings: Any, kernels: bool, **named: Any) -> Any:
    """The fast engine; None, with a warning, where the model cannot share a prefix."""
    from aisp_ray.engine.fast import FastEngine
    from aisp_ray.engine.verify import verify_engine
    from aisp_ray.lm.prefixes import UnsupportedModelError

    engine = None
    try:
        engine = FastEngine(model, *settings, kernels=kernels, **named)
        verify_engine(model, engine)
    except UnsupportedModelError as error:
        own, problem, engine = engine is not None and engine.fingerprint["kernels"], str(error), None
    else:
        return engine
    # out here: within `except` the failed engine hangs on the frames of its check
    if not own:
        log.warning("%s runs on expanded caches, slower: %s", type(model).__name__, problem)
        return None
    engine = _fast(model, *settings, kernels=False, **named)  # it may be them
    if engine is not None:
        log.warning("%s runs without the engine's own kernels, slower: %s", type(model).__name__, problem)
    return engine
