"""Counter-based noise: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

Element j of the noise of (key, iteration, particle, step) is a pure function of those numbers: any batch and any slice
of [0, d) gives the same value. The integers, and with them the uniform numbers, are the same on every device. Normal
numbers go through the float64 log, sine and cosine of a device's library, which may differ in their last bit; rounded
to float32 that is a last bit of about one element in 10^8. Stream 0 is control noise, stream 1 token sampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CONTROL_STREAM = 0
TOKEN_STREAM = 1

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten Philox rounds. All six int64 tensors hold 32-bit values and broadcast; so do the four results."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, whose bits are those of the unsigned product
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def split_key(keys: list[int], device: torch.device | str = "cpu") -> Tensor:
    """64-bit keys as two 32-bit words each. Returns int64 [rows, 2]."""
    return torch.tensor([[k & _LOW, (k >> 32) & _LOW] for k in keys], dtype=torch.int64, device=device)


def _draw(key: Tensor, iteration: Tensor, particle: Tensor, step: Tensor, block: Tensor, stream: int) -> list[Tensor]:
    tag = iteration.unsqueeze(-1) | (stream << 24)
    counter = (block, step.unsqueeze(-1), particle.unsqueeze(-1), tag)
    return list(philox(counter, (key[:, 0:1], key[:, 1:2])))


def normal(key: Tensor, iteration: Tensor, particle: Tensor, step: Tensor, dim: int) -> Tensor:
    """Standard normal noise by Box-Muller in float64, rounded to float32.

    key: int64 [rows, 2] of `split_key`; iteration, particle, step: int64 [rows]. Returns float32 [rows, dim].
    """
    block = torch.arange((dim + 3) // 4, device=key.device).unsqueeze(0)  # [1, dim/4]
    words = _draw(key, iteration, particle, step, block, CONTROL_STREAM)
    u = [(word.double() + 0.5) * 2.0**-32 for word in words]
    radius = [torch.sqrt(-2.0 * torch.log(u[0])), torch.sqrt(-2.0 * torch.log(u[2]))]
    angle = [2.0 * math.pi * u[1], 2.0 * math.pi * u[3]]
    parts = [
        radius[0] * torch.cos(angle[0]),
        radius[0] * torch.sin(angle[0]),
        radius[1] * torch.cos(angle[1]),
        radius[1] * torch.sin(angle[1]),
    ]
    return torch.stack(parts, dim=-1).flatten(1)[:, :dim].float()  # [rows, dim]


def uniform(key: Tensor, iteration: Tensor, particle: Tensor, step: Tensor) -> Tensor:
    """One uniform number in (0, 1) a row, for picking a token. Shapes as in `normal`. Returns float64 [rows]."""
    block = torch.zeros((1, 1), dtype=torch.int64, device=key.device)
    word = _draw(key, iteration, particle, step, block, TOKEN_STREAM)[0]
    return (word[:, 0].double() + 0.5) * 2.0**-32
