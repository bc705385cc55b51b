"""Linear layers with weights packed once, on a CPU in float32.

A matrix product of few rows spends much of its time on bringing the weights into the kernel's layout and waiting for
them. The engine's kernels, or oneDNN where those cannot be had, keep them in it. The packed weights are a second copy,
so this is done only where memory is plenty. Decode steps use it, the model's own calls do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aisp_ray.engine.cpu.kernels import Kernels, Packed
from aisp_ray.engine.memory import free_bytes


class Packing:
    """Packed copies of a model's linear layers for `rows` rows; empty where packing is not to be had.

    kernels: pack for these, which give the same bits at any number of rows; None: for oneDNN.
    widths: numbers of rows that oneDNN is used for, others are computed the model's own way.
    """

    def __init__(self, model: nn.Module, rows: int, kernels: Kernels | None = None):
        self.widths: frozenset[int] = frozenset((rows,))
        self._forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        linears = [m for m in model.modules() if type(m) is nn.Linear]
        needed = sum(m.weight.nbytes for m in linears)
        plain = all(_is_plain(m) for m in linears)
        if not linears or not plain or needed > free_bytes(torch.device("cpu")) // 4:
            return
        if kernels is not None:
            packed = kernels.pack([m.weight for m in linears])
            self._forwards = [(m, _own(m, weight, kernels)) for m, weight in zip(linears, packed, strict=True)]
        elif _packs(rows):
            self._forwards = [(m, _packed(m, rows, self)) for m in linears]

    def __len__(self) -> int:
        return len(self._forwards)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it the model's linear layers compute with their packed weights."""
        for module, forward in self._forwards:
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module, _ in self._forwards:
                module.__dict__.pop("forward", None)


def _is_plain(module: nn.Linear) -> bool:
    """Numbers in memory as they are: no quantised or distributed tensor that only looks like float32."""
    held = [tensor for tensor in (module.weight, module.bias) if tensor is not None]
    plain = all(type(t) in (nn.Parameter, Tensor) and t.is_cpu and t.dtype == torch.float32 for t in held)
    return plain and module.in_features > 0


def _own(module: nn.Linear, packed: Packed, kernels: Kernels) -> Callable[[Tensor], Tensor]:
    bias, width = module.bias, module.out_features

    def forward(x: Tensor) -> Tensor:
        return kernels.linear(x.reshape(-1, x.shape[-1]), packed, bias).view(*x.shape[:-1], width)

    return forward


def _packed(module: nn.Linear, rows: int, owner: Packing | None = None) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), rows)
    bias, width = module.bias, module.out_features

    def forward(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if owner is not None and flat.shape[0] not in owner.widths:
            return nn.functional.linear(x, module.weight, bias)
        out = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
        return out.view(*x.shape[:-1], width)

    return forward


def _packs(rows: int) -> bool:
    """Whether this build of PyTorch packs, and computes the same with it."""
    layer = nn.Linear(24, 40)
    x: Any = torch.linspace(-1, 1, rows * 24).view(rows, 24)
    try:
        return torch.allclose(_packed(layer, rows)(x), layer(x), atol=1e-5)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
