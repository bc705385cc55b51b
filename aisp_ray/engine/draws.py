"""What is known before a row is decoded: its open-loop control and its token uniforms, several steps at once.

Drawing S steps in one call spreads the cost of the counter-based generator; the values are those of `noise.normal` and
`noise.uniform`, whatever S. Means are rebuilt from their description and kept on the device, the oldest dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import MeanSource
from aisp_ray.engine.rows import Active, Row
from aisp_ray.noise import normal, split_key, uniform

_CHUNK = 16384  # Philox counters of one call: its temporaries stay in the cache of a core


def names(rows: Sequence[Row], steps: Tensor, device: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(key, iteration, particle, step) of every (row, step), flattened. steps: int64 [rows, S]."""
    width = steps.shape[1]
    key = split_key([row.active.request.key for row in rows], device)  # [rows, 2]
    when = [row.active.request.proposal.iteration for row in rows]
    spread = lambda values: torch.tensor(values, dtype=torch.int64, device=device).repeat_interleave(width)  # noqa: E731
    return key.repeat_interleave(width, 0), spread(when), spread([row.particle for row in rows]), steps.flatten()


def noise(rows: Sequence[Row], steps: Tensor, dim: int) -> Tensor:
    """Standard normal noise of the rows at `steps` [rows, S], float32 [rows, S, d]."""
    named = names(rows, steps, steps.device)
    if steps.device.type != "cpu":
        return normal(*named, dim).view(*steps.shape, dim)
    size = max(_CHUNK * 4 // dim, 1)
    key, iteration, particle, step = (part.split(size) for part in named)
    parts = [normal(*of, dim) for of in zip(key, iteration, particle, step, strict=True)]
    return torch.cat(parts).view(*steps.shape, dim)


def controls(rows: Sequence[Row], width: int, dim: int, device: Any) -> tuple[Tensor, np.ndarray]:
    """The next `width` controls of open-loop rows, float32 [S, rows, d], and (u.v, |u|^2), float64 [S, rows, 2].

    What is added is decay^t v; the sums are of u and v. From a row's horizon on it is zero.
    """
    steps = torch.tensor([row.step for row in rows], device=device)[:, None] + torch.arange(width, device=device)
    laws = [cast(OpenLoop, row.active.request.proposal.control) for row in rows]
    column = lambda values: torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]  # noqa: E731
    v = torch.zeros(len(rows), width, dim, device=device)
    sums = np.zeros((width, len(rows), 2))
    u = _means(rows, steps, dim)
    if u is not None:
        v = u
    if any(law.sigma > 0 for law in laws):
        v = v + column([law.sigma for law in laws]) * noise(rows, steps, dim)
    live = steps < torch.tensor([law.reach for law in laws], device=device)[:, None]  # [rows, S]
    v = v * live[:, :, None]
    if u is not None:
        u = u.double()
        sums[:, :, 0] = ((u * v.double()).sum(-1) * live).t().cpu().numpy()
        sums[:, :, 1] = (u.square().sum(-1) * live).t().cpu().numpy()
    if any(law.decay != 1 for law in laws):
        decay = torch.tensor([law.decay for law in laws], dtype=torch.float64, device=device)[:, None]
        v *= decay.pow(steps)[..., None]
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


class Means:
    """Means by (prompt, description, horizon), gone on from the cached parent, rebuilt where there is none."""

    def __init__(self, limit: int = 256):
        self._limit = limit
        self._held: OrderedDict[Any, Tensor] = OrderedDict()
        self.updates = 0  # iterations replayed, 1 for each request where nothing was lost

    def get(self, active: Active, source: Callable[[], MeanSource]) -> Tensor | None:
        """U of the request's control, float32 [horizon, d], or None."""
        control = active.request.proposal.control
        if not isinstance(control, OpenLoop) or control.mean is None or control.reach == 0:
            return None
        request = active.request
        prompt = (request.key, request.prompt_ids, control.reach)
        chain: list[Any] = []  # descriptions to go through, the newest first
        spec = control.mean
        while (mean := self._held.get((prompt, spec))) is None:
            chain.append(spec)
            parent = spec.parent()
            if parent is None:
                mean = chain.pop().fold(source(), control.reach)
                self._keep((prompt, spec), mean)
                break
            spec = parent
        for spec in reversed(chain):
            self.updates += 1
            mean = spec.advance(mean, source(), control.reach)
            self._keep((prompt, spec), mean)
        self._held.move_to_end((prompt, control.mean))
        return mean

    def _keep(self, name: Any, mean: Tensor) -> None:
        self._held[name] = mean
        while len(self._held) > self._limit:
            self._held.popitem(last=False)
