"""Shared-prefix attention: one softmax over a prompt's keys, read once for all its rows, and each row's own suffix.

Registered with transformers under `NAME`, so models run unmodified. Shapes: B rows of a tile, H query heads in groups
of g = H / Hkv per key-value head, D head width, L prompt keys, T suffix keys in blocks, G rows of a lane.

Every product has a shape that depends on the tile, the lane width and the row's own prompt only, never on who else is
in the batch. Blocks of the suffix that no row has reached are skipped; a row not there yet would weigh them with an
exact zero, so skipping changes no bit. Of the last block only what rows have reached is read, where a trial at load
(`widths.py`) showed the same bits for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

if TYPE_CHECKING:
    from aisp_ray.engine.rowcache import RowCache

NAME = "aisp_shared_prefix"
VECTORS = 64  # elements that PyTorch's elementwise kernels take in one go on a CPU (fewer in float32)
_active = threading.local()


@contextmanager
def decoding(configs: list[Any], cache: RowCache) -> Iterator[None]:
    """Within it, the models of these configs decode one token a row of `cache`."""
    before = [config._attn_implementation_internal for config in configs]
    for config in configs:
        config._attn_implementation_internal = NAME
    _active.cache = cache
    try:
        yield
    finally:
        _active.cache = None
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


def configs_of(model: Any) -> list[Any]:
    """Every configuration object that the model's modules look up their attention in."""
    found = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return [config for config in found.values() if hasattr(config, "_attn_implementation_internal")]


def shared_prefix_attention(
    module: Any,
    query: Tensor,  # [B, H, 1, D]
    key: Tensor,  # this step's; already written to the cache
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls. Returns [B, 1, H, value_dim]."""
    cache: RowCache = _active.cache
    layer = cache.layers[module.layer_idx]
    layout = layer.layout
    rows, heads, _, dim = query.shape
    scale = dim**-0.5 if scaling is None else scaling
    if cache.direct is not None:
        return cache.direct.attend(module.layer_idx, layer, query, scale, options), None
    grouped = (query * scale).view(rows, layout.num_heads, heads // layout.num_heads, dim)  # [B, Hkv, g, D]
    softcap = options.get("softcap")
    found = cache.prefixes.part(module.layer_idx, grouped, softcap)
    for block in range(cache.num_blocks):
        mask = cache.suffix_mask(block, layout.window, query.device)  # [B, 1, 1, T]
        keys, values = layer.key_blocks[block][:rows], layer.value_blocks[block][:rows]
        reach = cache.reach if block == cache.num_blocks - 1 else None
        span = partial(grouped, keys, values, mask, softcap, reach)
        found = merge(found, span)
    out, mass = found
    sinks = options.get("s_aux")
    if sinks is not None:  # one more logit a head, which takes mass and gives nothing
        out = out * whole_vectors(torch.sigmoid, mass - sinks.float().view(1, layout.num_heads, -1, 1))
    return out.to(query.dtype).reshape(rows, 1, heads, -1), None


Part = tuple[Tensor, Tensor]  # softmax over a span applied to its values [..., D], log of its mass [..., 1]; float32


def partial(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    reach: int | None = None,
) -> Part:
    """Attention over one span of keys. query [..., q, D], keys and values [..., k, D], mask added to the logits.

    reach: the mask hides all keys from here on, so they need not be read; None: it may not.
    """
    count = keys.shape[-2]
    if reach is not None:
        keys, values = keys[..., :reach, :], values[..., :reach, :]
        mask = None if mask is None else mask[..., :reach]
    scores = torch.matmul(query, keys.transpose(-1, -2)).float()  # [..., q, k]
    if softcap is not None:
        scores = (scores / softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores = scores.add_(mask)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    # with the zeros of the keys that are not read: the order of a sum depends on its length
    mass = (weights if reach is None else nn.functional.pad(weights, (0, count - reach))).sum(-1, keepdim=True)
    out = torch.matmul(weights.to(values.dtype), values).float().div_(mass)
    return out, mass.log_().add_(top)


def fused(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Part:
    """`partial` by PyTorch's fused CPU kernel, for one prompt: query [1, Hkv, q, D]."""
    out, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, False, attn_mask=mask, scale=1.0
    )
    return out, mass.unsqueeze(-1)


def merge(a: Part, b: Part) -> Part:
    """Attention over both spans. A span whose mass is nothing beside the other's leaves that one as it is, exactly."""
    share = whole_vectors(torch.sigmoid, b[1] - a[1])
    return torch.lerp(a[0], b[0], share), whole_vectors(torch.logaddexp, a[1], b[1])


def whole_vectors(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """An elementwise function of tensors of one shape, its bits the same in whatever shape on a CPU.

    PyTorch computes what does not fill its last vectors one by one, with other rounding: so they are filled.
    """
    first = tensors[0]
    rest = first.numel() % VECTORS
    if rest == 0 or not first.is_cpu:
        return function(*tensors)
    padded = [nn.functional.pad(t.reshape(-1), (0, VECTORS - rest)) for t in tensors]
    return function(*padded)[: first.numel()].view(first.shape)


AttentionInterface.register(NAME, shared_prefix_attention)
