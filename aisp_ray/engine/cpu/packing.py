"""Linear layers with weights packed once for the engine's kernels, and the steps of fewer rows that this allows.

A matrix product of few rows spends much of its time on bringing the weights into the kernel's layout and waiting for
them. The packed weights are a second copy, so this is done only where memory is plenty. Decode steps use it, the
model's own calls do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aisp_ray.engine.cpu.kernels import Kernels, PackedWeight
from aisp_ray.lm.attention import VECTORS
from aisp_ray.lm.memory import free_bytes

_GRAIN = 32768  # elements below which PyTorch gives an elementwise operation to one thread


class Packing:
    """PackedWeight copies of a model's linear layers; empty where packing is not to be had."""

    def __init__(self, model: nn.Module, kernels: Kernels | None):
        self._forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        linears = [m for m in model.modules() if type(m) is nn.Linear]
        needed = sum(m.weight.nbytes for m in linears)
        plain = all(_is_plain(m) for m in linears)
        if kernels is None or not linears or not plain or needed > free_bytes(torch.device("cpu")) // 4:
            return
        packed = kernels.pack([m.weight for m in linears])
        self._forwards = [(m, _forward(m, weight, kernels)) for m, weight in zip(linears, packed, strict=True)]

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

    def widths(self, model: Any, rows: int) -> tuple[int, ...]:
        """Numbers of slots that a step may run on without changing a row's bits, ascending; the last is `rows`.

        Only the kernels' products give a row the same bits among any number of rows. A model with others (experts,
        convolutions, what could not be packed) is always stepped whole. PyTorch's elementwise operations round what
        does not fill their last vectors otherwise, so a step must fill whole vectors in every layer, on each thread.
        """
        packed = {id(module) for module, _ in self._forwards}
        others = [m for m in model.modules() if id(m) not in packed and not isinstance(m, nn.Embedding)]
        if not packed or any(p.dim() > 1 for m in others for p in m.parameters(recurse=False)):
            return (rows,)
        outer: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
        embeddings = {id(module.weight) for module in outer}
        sizes = {size for p in model.parameters() if id(p) not in embeddings for size in p.shape}
        some = [width for width in candidates(rows) if all(_fills_vectors(width * size) for size in sizes)]
        return (*some, rows)


def candidates(rows: int) -> list[int]:
    """Numbers of slots worth having: each is about an eighth more than the one before."""
    found, width = [], 2
    while width < rows:
        found.append(width)
        width += 1 if width < 8 else 2 if width < 16 else 4 if width < 32 else 8 if width < 64 else 16
    return found


def _fills_vectors(count: int) -> bool:
    """Whether an elementwise operation on this many numbers has no rest behind the last vector of a thread's share."""
    threads = max(min(torch.get_num_threads(), -(-count // _GRAIN)), 1)
    return count % VECTORS == 0 and -(-count // threads) % VECTORS == 0


def _is_plain(module: nn.Linear) -> bool:
    """Numbers in memory as they are: no quantised or distributed tensor that only looks like float32."""
    held = [tensor for tensor in (module.weight, module.bias) if tensor is not None]
    plain = all(type(t) in (nn.Parameter, Tensor) and t.is_cpu and t.dtype == torch.float32 for t in held)
    return plain and module.in_features > 0


def _forward(module: nn.Linear, packed: PackedWeight, kernels: Kernels) -> Callable[[Tensor], Tensor]:
    bias, width = module.bias, module.out_features

    def forward(x: Tensor) -> Tensor:
        return kernels.linear(x.reshape(-1, x.shape[-1]), packed, bias).view(*x.shape[:-1], width)

    return forward
