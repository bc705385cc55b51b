"""What is drawn for a row: its open-loop control and token uniforms, several steps ahead, and its tokens.

Drawing S steps in one call spreads the cost of the counter-based generator; the values are those of `noise.normal` and
`noise.uniform`, whatever S. Tokens are pure functions of logits and uniforms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.rows import BEYOND, BROKEN, Row
from aisp_ray.noise import normal, split_key, uniform
from aisp_ray.types import Sampling

CANDIDATES = 4096  # the likeliest tokens, which a GPU ranks instead of the whole vocabulary
NOISE_BYTES = 1 << 29  # what the temporaries of one call of the generator take on a GPU
_RANKED_FIRST = (256, 2048)  # the likeliest tokens, which a CPU ranks before all: a sort takes 25 times as long
_BLOCK = 512  # entries that are summed at once to draw a token
# Philox counters of one call: on a CPU its temporaries stay in the cache of a core; some 16 numbers a counter
_CHUNK = {"cpu": 16384, "cuda": NOISE_BYTES // 128}


def names(rows: Sequence[Row], steps: Tensor, device: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(key, iteration, particle, step) of every (row, step), flattened. steps: int64 [rows, S]."""
    width = steps.shape[1]
    key = split_key([row.active.request.key for row in rows], device)  # [rows, 2]
    when = [row.active.request.proposal.iteration for row in rows]
    spread = lambda values: torch.tensor(values, dtype=torch.int64, device=device).repeat_interleave(width)  # noqa: E731
    return key.repeat_interleave(width, 0), spread(when), spread([row.particle for row in rows]), steps.flatten()


def noise(rows: Sequence[Row], steps: Tensor, dim: int) -> Tensor:
    """Standard normal noise of the rows at `steps` [rows, S], float32 [rows, S, d]."""
    return named_noise(names(rows, steps, steps.device), dim).view(*steps.shape, dim)


def named_noise(named: tuple[Tensor, Tensor, Tensor, Tensor], dim: int) -> Tensor:
    """`noise.normal` of any number of names (key, iteration, particle, step) in calls of bounded memory, [names, d]."""
    size = max(_CHUNK.get(named[3].device.type, 16384) * 4 // dim, 1)
    if len(named[3]) <= size:
        return normal(*named, dim)
    key, iteration, particle, step = (part.split(size) for part in named)
    return torch.cat([normal(*of, dim) for of in zip(key, iteration, particle, step, strict=True)])


def controls(rows: Sequence[Row], width: int, dim: int, device: Any) -> tuple[Tensor, Tensor]:
    """The next `width` controls of open-loop rows, float32 [S, rows, d], and (u.v, |u|^2), float64 [S, rows, 2].

    What is added is scale decay^t v; the sums are of u and v. From a row's horizon on it is zero.
    """
    steps = torch.tensor([row.step for row in rows], device=device)[:, None] + torch.arange(width, device=device)
    laws = [cast(OpenLoop, row.active.request.proposal.control) for row in rows]
    column = lambda values: torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]  # noqa: E731
    v = torch.zeros(len(rows), width, dim, device=device)
    sums = torch.zeros(width, len(rows), 2, dtype=torch.float64, device=device)
    u = _means(rows, steps, dim)
    if u is not None:
        v = u
    if any(law.sigma > 0 for law in laws):
        v = v + column([law.sigma for law in laws]) * noise(rows, steps, dim)
    live = steps < torch.tensor([law.reach for law in laws], device=device)[:, None]  # [rows, S]
    v = v * live[:, :, None]
    if u is not None:
        u = u.double()
        sums[:, :, 0] = ((u * v.double()).sum(-1) * live).t()
        sums[:, :, 1] = (u.square().sum(-1) * live).t()
    if any(law.decay != 1 or law.scale != 1 for law in laws):
        scale, decay = torch.tensor([[law.scale, law.decay] for law in laws], dtype=torch.float64, device=device).t()
        v *= (scale[:, None] * decay[:, None].pow(steps))[..., None]
    return v.transpose(0, 1), sums


def _means(rows: Sequence[Row], steps: Tensor, dim: int) -> Tensor | None:
    """U at each row's steps, float32 [rows, S, d]; None if no row has a mean."""
    if all(row.active.mean is None for row in rows):
        return None
    pools, offsets, seen = [torch.zeros(1, dim, device=steps.device)], [], {}
    size = 1
    for row in rows:
        mean = row.active.mean
        if mean is not None and id(mean) not in seen:
            seen[id(mean)] = size
            pools.append(mean)
            size += mean.shape[0]
        offsets.append((0, 0) if mean is None else (seen[id(mean)], mean.shape[0] - 1))
    start, last = torch.tensor(offsets, device=steps.device).t()[:, :, None]
    return torch.cat(pools)[start + torch.minimum(steps, last)]


def uniforms(rows: Sequence[Row], width: int, device: Any) -> Tensor:
    """The next `width` token uniforms, float64 [S, rows]."""
    steps = torch.tensor([row.step for row in rows], device=device)[:, None] + torch.arange(width, device=device)
    return uniform(*names(rows, steps, device)).view(len(rows), width).t()


def candidates_on(device: torch.device) -> int | None:
    """Tokens that `pick` ranks on this device and no more, for the engine to draw again where they do not suffice; None
    on a CPU, where `pick` looks at once whether they did."""
    return CANDIDATES if device.type == "cuda" else None


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor | None, candidates: int | None = None) -> Tensor:
    """One token per row: the most likely one at temperature 0, else by inverse CDF; `BROKEN` where there is no number.

    logits: float32 [rows, vocabulary], forbidden tokens at -inf. uniform: float64 [rows] in (0, 1), unused at
    temperature 0. candidates: rank no more than the likeliest ones for top_p and top_k, which takes a fraction of the
    time of a full sort; `BEYOND` where the token may lie behind them. None: rank as many as are needed.
    Returns int64 [rows].
    """
    if sampling.temperature == 0.0:
        token = most_likely(logits)[:, None]
        return torch.where(logits.gather(1, token).isfinite(), token, BROKEN)[:, 0]
    assert uniform is not None, "sampling needs uniform numbers"
    scaled = logits if sampling.temperature == 1.0 else logits / sampling.temperature
    if sampling.top_p == 1.0 and not 0 < sampling.top_k < logits.shape[-1]:
        return _inverse_cdf(scaled.softmax(-1), uniform)[:, 0]
    if candidates is not None or not logits.is_cpu:
        return _truncated(scaled, sampling, uniform, candidates)
    first, *more = _widths(logits.shape[-1], sampling.top_k)
    token = _truncated(scaled, sampling, uniform, first)
    for count in more:
        rest = (token == BEYOND).nonzero()[:, 0]
        if len(rest) == 0:
            break
        token[rest] = _truncated(scaled[rest], sampling, uniform[rest], count)
    return token


def _widths(size: int, top_k: int = 0) -> list[int | None]:
    """How many tokens of a vocabulary a CPU ranks, one after the other until they suffice; None: all."""
    return [count for count in _RANKED_FIRST if 2 * count <= size and top_k < count] + [None]


def _truncated(scaled: Tensor, sampling: Sampling, uniform: Tensor, candidates: int | None) -> Tensor:
    """`pick` with top_p or top_k. scaled: the logits over the temperature. candidates: None for all."""
    size = scaled.shape[-1]
    width = sampling.top_k if 0 < sampling.top_k < size else size
    some = candidates is not None and 2 * candidates <= size and (width == size or width < candidates)
    ranked, order = _likeliest(scaled, candidates or 0) if some else _ranked(scaled)
    last = ranked[:, -1:]  # whether others are as likely is not known
    ranked, order = ranked[:, :width], order[:, :width]
    mass = ranked.softmax(-1) if width < size else (ranked - scaled.logsumexp(-1, keepdim=True)).exp()
    if sampling.top_p < 1.0:
        exact = mass.double()
        kept = exact.cumsum(-1) - exact < sampling.top_p
        mass = torch.where(kept, mass, 0.0)
    else:
        kept = torch.ones_like(mass, dtype=torch.bool)
    index = _inverse_cdf(mass, uniform)
    chosen = order.gather(1, index.clamp(min=0))
    if some:  # the least likely token that counts is among those that the candidates hold for sure
        chosen = torch.where((kept & (ranked == last) & (mass > 0)).any(-1, keepdim=True), BEYOND, chosen)
    return torch.where((index >= 0) & ranked[:, :1].isfinite(), chosen, BROKEN)[:, 0]


def supported(logits: Tensor, base: Tensor, top_p: float) -> Tensor:
    """`logits` with -inf at every token outside the base policy's nucleus.

    logits: float32 [rows, vocabulary] under control; those at -inf are forbidden, and no part of the nucleus.
    base: the logits without control. top_p: mass of the nucleus at temperature 1; as in `pick`, a token is inside if
    the likelier ones hold less. Returns float32 [rows, vocabulary].
    """
    base = base.masked_fill(logits == -torch.inf, -torch.inf)
    widths = _widths(base.shape[-1]) if base.is_cpu else [None]
    return logits.masked_fill(~_nucleus(base, top_p, widths), -torch.inf)


def _nucleus(base: Tensor, top_p: float, widths: Sequence[int | None]) -> Tensor:
    """Which tokens are inside, bool [rows, vocabulary]. widths: how many to rank, one after the other until they hold
    the nucleus; the last is None, for all."""
    count = widths[0]
    ranked, order = _ranked(base) if count is None else _likeliest(base, count)
    mass = (ranked - base.logsumexp(-1, keepdim=True)).exp().double()
    inside = mass.cumsum(-1) - mass < top_p
    found = torch.zeros_like(base, dtype=torch.bool).scatter(1, order, inside)
    if count is not None:
        wide = (inside & (ranked == ranked[:, -1:])).any(-1)
        if bool(wide.any()):
            found[wide] = _nucleus(base[wide], top_p, widths[1:])
    return found


def _ranked(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, tokens), the likeliest first; a stable sort breaks ties by token id on every device."""
    ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
    return ranked, order


def _likeliest(scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` of `_ranked`, but for which of those as likely as the last one they hold."""
    tokens = scaled.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    ranked, at = _ranked(scaled.gather(1, tokens))
    return ranked, tokens.gather(1, at)


def most_likely(logits: Tensor) -> Tensor:
    """The first of the highest logits, int64 [rows]; of a row with NaN, the first NaN."""
    # PyTorch's own takes about ten times as long on a CPU
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.is_cpu else logits.argmax(-1)


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> Tensor:
    """Index of the first entry whose cumulative mass exceeds uniform * total, `BROKEN` where the total is no number.

    mass: float32 [rows, k], summed in float64: first in blocks, then within the block that the number falls into.
    Returns int64 [rows, 1].
    """
    size = math.gcd(mass.shape[-1], _BLOCK)
    if size < _BLOCK // 8:
        size, mass = _BLOCK, torch.nn.functional.pad(mass, (0, -mass.shape[-1] % _BLOCK))
    blocks = mass.view(len(mass), -1, size)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # [rows, blocks]
    total = ends[:, -1:]
    target = uniform[:, None] * total
    block = _first_beyond(ends, target)  # [rows, 1]
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, size))[:, 0].double()  # [rows, size]
    index = block * size + _first_beyond(before + inside.cumsum(-1), target, inside > 0)
    return torch.where(total.isfinite(), index, BROKEN)


def _first_beyond(cdf: Tensor, target: Tensor, live: Tensor | None = None) -> Tensor:
    """The first entry of an ascending row that exceeds its target, but none behind the last one that adds mass, where
    rounding may land. live: which entries have mass; None: those at which the row grows."""
    if live is None:
        live = torch.cat([cdf[:, :1] > 0, cdf[:, 1:] > cdf[:, :-1]], 1)
    last = live.int().cumsum(-1).argmax(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cdf.contiguous(), target, right=True), last)


def branch(logits: Tensor, ranks: Tensor) -> Tensor:
    """Row i's token is its `ranks[i]`-th most likely one (0: the most likely); `BROKEN` where it has no number.
    Returns int64 [rows]."""
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    token = torch.where(ranked[:, :1].isfinite(), order.gather(1, ranks[:, None]), BROKEN)
    return token[:, 0]
