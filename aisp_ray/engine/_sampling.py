"""Picking tokens on the device, as pure tensor functions: equal logits and uniforms give equal tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from aisp_ray.types import Sampling


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """One token a row: the most likely one at temperature 0, else by inverse CDF.

    logits: float32 [rows, vocabulary], forbidden tokens at -inf. uniform: float64 [rows] in (0, 1), unused at
    temperature 0. Returns int64 [rows].
    """
    if sampling.temperature == 0.0:
        return most_likely(logits)
    assert uniform is not None, "sampling needs uniform numbers"
    scaled = logits / sampling.temperature
    width = sampling.top_k if 0 < sampling.top_k < logits.shape[-1] else logits.shape[-1]
    if width < logits.shape[-1] or sampling.top_p < 1.0:
        # most likely first; a stable sort breaks ties by token id on every device
        ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
        ranked, order = ranked[:, :width], order[:, :width]
        mass = ranked.softmax(-1).double()
        if sampling.top_p < 1.0:
            before = mass.cumsum(-1) - mass
            mass = torch.where(before < sampling.top_p, mass, 0.0)
        return order.gather(1, _inverse_cdf(mass, uniform)).squeeze(1)
    return _inverse_cdf(scaled.softmax(-1).double(), uniform).squeeze(1)


def most_likely(logits: Tensor) -> Tensor:
    """The first of the highest logits, int64 [rows]."""
    # PyTorch's own takes about ten times as long on a CPU
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.is_cpu else logits.argmax(-1)


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> Tensor:
    """Index of the first entry whose cumulative mass exceeds uniform * total. mass: float64 [rows, k] -> [rows, 1]."""
    cdf = mass.cumsum(-1)
    target = uniform.unsqueeze(1) * cdf[:, -1:]
    index = torch.searchsorted(cdf, target, right=True)
    # rounding may land on an entry of no mass behind the last one that has some
    last = (mass > 0).int().cumsum(-1).argmax(-1, keepdim=True)
    return torch.minimum(index, last)


def branch(logits: Tensor, ranks: Tensor) -> Tensor:
    """Row i's token is its `ranks[i]`-th most likely one (0: the most likely). Returns int64 [rows]."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return order.gather(1, ranks.unsqueeze(1)).squeeze(1)
