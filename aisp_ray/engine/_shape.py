"""Noise shaped by the LM head, on the policy's device: the map S is computed once a model and kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aisp_ray.controls.laws import HeadShape, OpenLoop
from aisp_ray.lm.head import Head

_BLOCK = 128  # vectors of one product: with one size for all, a row's numbers do not depend on who is beside it


class Shapes:
    """The maps S [d, d] of a head by their description."""

    def __init__(self, head: Head):
        self._head = head
        self._held: dict[HeadShape, Tensor] = {}

    def get(self, control: Any) -> Tensor | None:
        """S of a control whose noise is shaped by the head, float32 [d, d] on the device of W; None for all others.

        Raises:
            ValueError: the head's weights are not floating-point numbers.
        """
        shape = control.shape if isinstance(control, OpenLoop) else None
        if shape is None:
            return None
        if shape not in self._held:
            self._held[shape] = shape.matrix(self._head.weight.detach())
        return self._held[shape]


def apply(shape: Tensor, v: Tensor) -> Tensor:
    """S v of whitened controls [..., d], in products of `_BLOCK` vectors."""
    flat = v.reshape(-1, v.shape[-1])
    count = flat.shape[0]
    padded = torch.nn.functional.pad(flat, (0, 0, 0, -count % _BLOCK))
    return torch.cat([part @ shape for part in padded.split(_BLOCK)])[:count].view(v.shape)  # S is symmetric
