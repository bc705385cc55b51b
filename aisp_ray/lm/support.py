"""Which models cannot share a prefix, as far as a configuration tells; `checks.py` finds out the rest by reading."""

from __future__ import annotations

from typing import Any

_LENGTH_DEPENDENT_ROPES = ("dynamic", "longrope", "su")
_ATTENTION_LAYERS = ("full_attention", "sliding_attention")


class UnsupportedModelError(ValueError):
    """This model cannot share a prefix; the text says why. Plain reading can still run it."""


def length_dependent_rope(config: Any) -> str | None:
    """The rope type whose frequencies follow the longest row of a batch; None where frequencies are fixed."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [one.get("rope_type", one.get("type")) for one in (rope, *rope.values()) if isinstance(one, dict)]
    return next((kind for kind in kinds if kind in _LENGTH_DEPENDENT_ROPES), None)


def require_supported(model: Any, states: bool = True) -> None:
    """Refuse what is known to go wrong.

    states: whether layers may carry convolution or recurrent states from token to token.

    Raises:
        UnsupportedModelError: says what cannot be shared.
    """
    config = model.config.get_text_config(decoder=True)
    layers = set(getattr(config, "layer_types", None) or ())
    if not hasattr(model, "base_model_prefix") or model.base_model is model:
        raise UnsupportedModelError("the model has no body apart from its head")
    if rope := length_dependent_rope(config):
        raise UnsupportedModelError(f"the frequencies of its {rope} rope depend on the longest row of a batch")
    if getattr(config, "attention_chunk_size", None) or "chunked_attention" in layers:
        raise UnsupportedModelError("its attention is chunked")
    if not states and (others := layers.difference(_ATTENTION_LAYERS)):
        raise UnsupportedModelError(f"its layers include {', '.join(sorted(others))}")
