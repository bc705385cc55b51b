"""Which numbers of slots give the rows of a whole tile, bit for bit, and which numbers of suffix keys a whole block's.

A product of fewer rows is cheaper, but libraries may choose another order of summation for it, and then a row's last
bits would depend on how many others are left. Which order they choose depends on shapes only, so it is tried out when
an engine is built: whole decode steps of the model on random keys, values, states, tokens and positions. A number of
slots whose rows differ anywhere is not used.

A trial might miss what differs rarely: PyTorch's elementwise kernels (sigmoid, silu, gelu, softplus) round the elements
behind the last whole vector otherwise, now and then. So only numbers are tried at which every layer's output fills
whole vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aisp_ray.engine.rowcache import SuffixLayer
from aisp_ray.engine.tile import Tile
from aisp_ray.lm.attention import HIDDEN, VECTORS, partial
from aisp_ray.lm.prefixes import Prefix

_REACH = 16  # suffix keys: the raster of numbers that are tried
_ROUNDS = 2  # random inputs; each has a row in every slot
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def candidates(size: int, unit: int = 1) -> list[int]:
    """Numbers of slots worth having, multiples of `unit`: each is about an eighth more than the one before."""
    found, width = [], 2
    while width < size:
        if width % unit == 0:
            found.append(width)
        width += 1 if width < 8 else 2 if width < 16 else 4 if width < 32 else 8 if width < 64 else 16
    return found


def unit(model: Any) -> int:
    """The smallest number of rows at which every layer's output [rows, features] fills whole vectors.

    Logits are left out: what is computed on them (`tanh`, `exp`, `log`, softmax) rounds alike everywhere.
    """
    outer = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    inner = [p.shape for p in model.parameters() if id(p) not in outer]
    sizes = {size for shape in inner for size in (shape if len(shape) < 3 else shape[:1])}
    return max((VECTORS // math.gcd(size, VECTORS) for size in sizes), default=1)


@torch.no_grad()
def equal_widths(tile: Tile, prefix: Prefix) -> tuple[int, ...]:
    """Numbers of slots, ascending, whose rows are those of the whole tile; the last is the whole tile.

    tile: a fresh one, left as if new. prefix: any prompt. A model with experts gets none but the whole tile: an
    expert's product has as many rows as chose it, so no trial tells about the next one.
    """
    size = len(tile.rows)
    model = tile.body.model
    found = [] if _has_experts(model) else candidates(size, unit(model))
    packing = tile.body.packing
    packing.widths = frozenset((*found, size))
    for seed in range(_ROUNDS):
        if not found:
            break
        tokens, states = _fill(tile, prefix, seed)
        whole = _step(tile, prefix, size, tokens, states)
        found = [width for width in found if _same(_step(tile, prefix, width, tokens, states), whole)]
    _clear(tile)
    packing.widths = frozenset((*found, size))
    return (*found, size)


@torch.no_grad()
def equal_reaches(tile: Tile, prefix: Prefix, widths: Sequence[int]) -> tuple[int, ...]:
    """Numbers of a suffix block's first keys, ascending, whose attention alone is bit for bit that of the whole block
    with the others hidden, at each of the widths. Tried in float32 on a CPU only: half types gain nothing.

    tile: a fresh one, left as if new. prefix: any prompt.
    """
    cache = tile.cache
    if cache.direct is not None:
        return ()  # reads each row up to its position
    layers = [layer for layer in cache.layers if isinstance(layer, SuffixLayer)]
    if not layers or any(t.dtype != torch.float32 or not t.is_cpu for t in cache.buffers()):
        return ()
    found = list(range(_REACH, cache.block, _REACH))
    if found and not cache.prefixes.kinds:
        tokens, states = _fill(tile, prefix, 0)
        _step(tile, prefix, len(tile.rows), tokens, states)  # shows what the layers ask for
        _clear(tile)
    kinds = {
        (layer.layout.num_heads, layer.layout.key_dim, layer.layout.value_dim, *cache.prefixes.kinds[i])
        for i, layer in enumerate(cache.layers)
        if i in cache.prefixes.kinds
    }
    for kind in kinds:
        for width in widths:
            found = [reach for reach in found if _reach_is_equal(kind, width, cache.block, reach)]
    return tuple(found)


def _reach_is_equal(kind: tuple[Any, ...], width: int, block: int, reach: int) -> bool:
    """Whether random rows [width, heads, group, dim] that have come up to `reach` read only so many keys alike."""
    heads, key_dim, value_dim, group, softcap = kind
    draw = torch.Generator().manual_seed(reach)
    query, keys, values = (
        torch.randn(width, heads, *shape, generator=draw)
        for shape in ((group, key_dim), (block, key_dim), (block, value_dim))
    )
    at = torch.randint(reach, (width, 1), generator=draw)
    mask = ((torch.arange(block) > at) * HIDDEN)[:, None, None, :]
    whole = partial(query, keys, values, mask, softcap)
    part = partial(query, keys, values, mask, softcap, reach)
    return all(torch.equal(mine, theirs) for mine, theirs in zip(part, whole, strict=True))


def _has_experts(model: Any) -> bool:
    config = model.config.get_text_config(decoder=True)
    return any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS)


def _fill(tile: Tile, prefix: Prefix, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Random suffixes and positions for all slots. Returns tokens [B] and the states."""
    draw = torch.Generator().manual_seed(seed)
    size, cache = len(tile.rows), tile.cache
    for buffer in (*cache.buffers(), *cache.states()):
        buffer.copy_(torch.randn(buffer.shape, generator=draw))
    reach = cache.length if seed == 0 else cache.block  # all blocks, and only the first
    cache.step.copy_(torch.randint(reach, (size,), generator=draw))
    tile.base_length.fill_(prefix.length)
    tokens = torch.randint(tile.head.weight.shape[0], (size,), generator=draw)
    return tokens, [state.clone() for state in cache.states()]


def _step(tile: Tile, prefix: Prefix, width: int, tokens: Tensor, states: Sequence[Tensor]) -> list[Tensor] | None:
    """Pre-logits and logits of the first `width` slots; None if the model fails on that many."""
    for state, before in zip(tile.cache.states(), states, strict=True):
        state.copy_(before)
    tile.width = width
    tile.token.copy_(tokens)
    tile.cache.prefixes.assign([prefix] * width)
    try:
        hidden = tile.run_body(tile.cache.blocks_for(int(tile.cache.step.max())))
        with tile.body.packing.used():
            logits = tile.head(hidden)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model may fail in any way; on the whole tile the check at load says how
        return None
    return [hidden, logits, logits.logsumexp(-1, keepdim=True), logits.softmax(-1)]


def _same(part: list[Tensor] | None, whole: list[Tensor] | None) -> bool:
    if part is None or whole is None:
        return False
    return all(torch.equal(mine, theirs[: len(mine)]) for mine, theirs in zip(part, whole, strict=True))


def _clear(tile: Tile) -> None:
    for buffer in (*tile.cache.buffers(), *tile.cache.states()):
        buffer.zero_()
    for buffer in (tile.cache.step, tile.base_length, tile.token):
        buffer.zero_()
    tile.width = len(tile.rows)
    tile.cache.begin_step(1, tile.width)
