"""Attention over a shared prefix and a row's own tokens: the switch that puts it into a model, and its arithmetic.

Registered with transformers under `NAME`, so models run unmodified. What is computed is up to the `Attend` in force:
a row cache that decodes, or a packed batch that is read at once. Shapes: q queries, k keys, D head width; rows of a
batch, heads and so on are the caller's leading axes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from aisp_ray.lm.shims import attention_named, cpu_attention

NAME = "aisp_shared_prefix"
HIDDEN = -1e30  # added to the logit of a key that a query may not see: finite, so that a span with none stays a number
FUSED_DTYPES = (torch.float32, torch.bfloat16)
WIDE_PRODUCTS = hasattr(torch.ops.aten.bmm, "dtype")  # 16-bit factors with a float32 product, on a GPU
VECTORS = 64  # elements that PyTorch's elementwise kernels take in one go on a CPU (fewer in float32)
_active = threading.local()


class Call(NamedTuple):
    """What a layer hands to its attention. query [b, heads, q, D]; key and value [b, key heads, q, D]."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    options: dict[str, Any]  # softcap, s_aux (sinks), sliding_window where the architecture has them


Attend = Callable[[Call], Tensor]  # returns [b, q, heads, value width]


@contextmanager
def attending(configs: Sequence[Any], attend: Attend) -> Iterator[None]:
    """Within it and in this thread, the attention of the models of these configs is `attend`."""
    _active.attend = attend
    try:
        with attention_named(configs, NAME):
            yield
    finally:
        _active.attend = None


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _active.attend(Call(module.layer_idx, query, key, value, scale, options)), None


Part = tuple[Tensor, Tensor]  # softmax over a span applied to its values [..., D], log of its mass [..., 1]; float32


def scaled(query: Tensor, scale: float) -> tuple[Tensor, float]:
    """(query, scale that is left for the logits): in 16 bits on a GPU all of it, so that nothing is rounded before."""
    return (query, scale) if _sums_in_float32(query) else (query * scale, 1.0)


def _sums_in_float32(query: Tensor) -> bool:
    return query.is_cuda and query.dtype != torch.float32 and WIDE_PRODUCTS


def _logits(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Float32 logits [..., q, k]. On a GPU they leave the product in float32, as they do in fused attention."""
    if not _sums_in_float32(query):
        return torch.matmul(query, keys.transpose(-1, -2)).float()
    flat = query.flatten(0, -3), keys.transpose(-1, -2).flatten(0, -3)
    scores = torch.bmm(*flat, out_dtype=torch.float32).view(*query.shape[:-1], keys.shape[-2])
    return scores.mul_(scale)


def partial(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, softcap: float | None, scale: float = 1.0
) -> Part:
    """Attention over one span of keys. query [..., q, D] and scale as `scaled` gives them, keys and values [..., k, D],
    mask added to the logits."""
    scores = _logits(query, keys, scale)  # [..., q, k]
    if softcap is not None:
        scores = (scores / softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores = scores.add_(mask)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    mass = weights.sum(-1, keepdim=True)
    out = torch.matmul(weights.to(values.dtype), values).float().div_(mass)
    return out, mass.log_().add_(top)


def span(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None, softcap: float | None) -> Part:
    """`partial` of a query that is not scaled yet, by PyTorch's fused CPU kernel where that can do it."""
    if softcap is None and query.is_cpu and query.dtype in FUSED_DTYPES and keys.shape == values.shape:
        out, mass = cpu_attention(query, keys, values, scale, mask=None if mask is None else mask.to(query.dtype))
        return out, mass.unsqueeze(-1)
    query, left = scaled(query, scale)
    return partial(query, keys, values, mask, softcap, left)


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
