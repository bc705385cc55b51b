"""The private parts of transformers and torch that this package relies on, all in one place.

A release that changes one of them is reported by the part's name, with the versions that were tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from importlib.metadata import version
from typing import Any

from torch import Tensor

TESTED = {"torch": "2.7 to 2.13", "transformers": "5.17 to 5.23"}  # as pyproject.toml bounds them
_ATTENTION = "_attn_implementation_internal"  # where a model's modules look up the name of their attention function


def private(library: str, path: str) -> Any:
    """The object at a dotted path below a library.

    Raises:
        ImportError: this version of the library does not have it.
    """
    try:
        return reduce(getattr, path.split("."), import_module(library))
    except (ImportError, AttributeError) as error:
        raise _changed(library, path) from error


def _changed(library: str, what: str) -> ImportError:
    return ImportError(
        f"aisp-ray uses {library}.{what}, which {library} {version(library)} does not have; "
        f"tested with {TESTED[library]}: pip install 'aisp-ray' installs one of these"
    )


Cache: Any = private("transformers", "cache_utils.Cache")
CacheLayerMixin: Any = private("transformers", "cache_utils.CacheLayerMixin")
DynamicLayer: Any = private("transformers", "cache_utils.DynamicLayer")
DynamicSlidingWindowLayer: Any = private("transformers", "cache_utils.DynamicSlidingWindowLayer")
LinearAttentionLayer: Any = private("transformers", "cache_utils.LinearAttentionLayer")
_cpu_attention = private("torch", "ops.aten._scaled_dot_product_flash_attention_for_cpu")
_flash_attention = private("torch", "ops.aten._flash_attention_forward.default")
# one split of the keys, where it can be asked for: the same sums whatever the batch
_FLASH_OPTIONS = {"num_splits": 1} if "num_splits" in {one.name for one in _flash_attention._schema.arguments} else {}


def cpu_attention(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """PyTorch's fused CPU attention with what its public form keeps to itself.

    query [b, heads, q, D]; keys and values [b, heads, k, D]; mask is added to the logits. Returns the attention and
    the log-sum-exps of the logits [b, heads, q] in float32.
    """
    return _cpu_attention(query, keys, values, 0.0, causal, attn_mask=mask, scale=scale)


def flash_attention(  # noqa: PLR0913
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    key_counts: Tensor,
    longest: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """PyTorch's FlashAttention over ragged sequences, without a mask; on a GPU, in 16 bits.

    query [q, H, D]; keys and values [k, Hkv, D]. Sequence i has the queries from query_starts[i] to query_starts[i + 1]
    and key_counts[i] keys from key_starts[i] on; int32 [n + 1], [n + 1] and [n]. longest: no sequence has more queries
    and keys. Returns the attention [q, H, D] and the log-sum-exps of the logits, float32 [H, q].
    """
    given = (query, keys, values, query_starts, key_starts, *longest, 0.0, False, False)
    return _flash_attention(*given, scale=scale, seqused_k=key_counts, **_FLASH_OPTIONS)[:2]


def attention_configs(model: Any) -> list[Any]:
    """Every configuration object that the model's modules look up their attention in.

    Raises:
        ImportError: transformers keeps the name of the attention elsewhere.
    """
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    found = [config for config in configs if hasattr(config, _ATTENTION)]
    if not found:
        raise _changed("transformers", f"PretrainedConfig.{_ATTENTION}")
    return found


@contextmanager
def attention_named(configs: Sequence[Any], name: str) -> Iterator[None]:
    """Within it, the models of these configs use the attention function registered under `name`."""
    before = [getattr(config, _ATTENTION) for config in configs]
    for config in configs:
        setattr(config, _ATTENTION, name)
    try:
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            setattr(config, _ATTENTION, own)
