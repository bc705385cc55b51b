"""Which models can share a prefix, as far as a configuration tells; `verify.py` finds out the rest by decoding."""

from __future__ import annotations

from typing import Any

from aisp_ray.lm.prefixes import UnsupportedModelError

_LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic", "su")


def require_supported(model: Any) -> None:
    """Refuse what is known to go wrong.

    Raises:
        UnsupportedModelError: says what cannot be shared.
    """
    config = model.config.get_text_config(decoder=True)
    if not hasattr(model, "base_model_prefix") or model.base_model is model:
        raise UnsupportedModelError("the model has no body apart from its head")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope.get("rope_type")] + [r.get("rope_type") for r in rope.values() if isinstance(r, dict)]
    if any(kind in _LENGTH_DEPENDENT_ROPE for kind in kinds):
        raise UnsupportedModelError(f"rope type {kinds} depends on the longest row of a batch")
    if getattr(config, "attention_chunk_size", None) or "chunked_attention" in (
        getattr(config, "layer_types", 0) or ()
    ):
        raise UnsupportedModelError("chunked attention")
