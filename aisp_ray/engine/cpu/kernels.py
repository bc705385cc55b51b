"""The engine's own CPU products (`kernels.c`) behind checks of all that C would misread.

Optional: without a C compiler the engine computes with PyTorch's operations alone, slower and as exact.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from aisp_ray.engine.cpu import build
from aisp_ray.lm.prefixes import Prefix

_PAGE = 1 << 21  # bytes of a large page
_FUNCTIONS = {
    "aisp_packed_floats": (ctypes.c_long,) * 2,
    "aisp_advise": (ctypes.c_void_p, ctypes.c_long),
    "aisp_pack": (ctypes.c_void_p,) * 2 + (ctypes.c_long,) * 2,
    "aisp_linear": (ctypes.c_void_p,) * 4 + (ctypes.c_long,) * 3 + (ctypes.c_int,),
    "aisp_attend": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long) + (ctypes.c_void_p,) * 4 + (ctypes.c_int,),
}


class Layer(ctypes.Structure):
    """`Layer` of kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "group", "key_dim", "value_dim", "block", "slots", "window")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "sinks")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    )


class Lane(ctypes.Structure):
    """`Lane` of kernels.c: the rows of one prompt."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("count", "start", "length", "first_row", "num_rows")),
    )


DEFINES = (f"-DLAYER_BYTES={ctypes.sizeof(Layer)}", f"-DLANE_BYTES={ctypes.sizeof(Lane)}")  # asserted in C


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A linear layer's weights in the order in which `Kernels.linear` reads them."""

    panels: Tensor
    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes of a tile in one layer. `rows`: int64, the lanes' rows one after the other."""

    table: Any  # ctypes array of `Lane`
    rows: Tensor
    size: int  # rows of the tile: a larger index would be read beyond the end

    @classmethod
    def of(cls, layer: Layer, index: int, groups: Sequence[tuple[Prefix, list[int]]]) -> Lanes:
        """Lanes of these prompts and rows in layer `index`.

        Raises:
            ValueError: keys or values that C would misread.
        """
        lanes: list[Lane] = []
        rows: list[int] = []
        for prefix, members in groups:
            keys, values = prefix.keys[index], prefix.values[index]
            assert keys is not None, "a layer of states has no keys"
            assert values is not None
            count = keys.shape[-2]
            _require("a prompt's keys", keys, (1, layer.heads, count, layer.key_dim))
            _require("a prompt's values", values, (1, layer.heads, count, layer.value_dim))
            places = (count, prefix.starts[index], prefix.length, len(rows), len(members))
            lanes.append(Lane(keys.data_ptr(), values.data_ptr(), *places))
            rows += members
        if any(not 0 <= row < layer.slots for row in rows):
            raise ValueError(f"rows {rows} are not all among the {layer.slots} of a tile")
        index_of = torch.tensor(rows, dtype=torch.int64, device="cpu")
        return cls((Lane * len(lanes))(*lanes), index_of, max(rows, default=-1) + 1)


class Kernels:
    """The compiled functions. `threaded`: whether they can use several threads."""

    def __init__(self, library: ctypes.CDLL, threaded: bool):
        for name, arguments in _FUNCTIONS.items():
            getattr(library, name).argtypes = arguments
        library.aisp_packed_floats.restype = ctypes.c_long
        self._library, self.threaded = library, threaded

    def pack(self, weights: Sequence[Tensor]) -> list[PackedWeight]:
        """Weights [outputs, inputs], float32 on the CPU, side by side in memory."""
        sizes = [self._library.aisp_packed_floats(*weight.shape) for weight in weights]
        spare = _PAGE // 4
        arena = torch.empty(sum(sizes) + spare, dtype=torch.float32, device="cpu")
        arena = arena[-(arena.data_ptr() // 4) % spare :]  # from the start of a large page on
        self._library.aisp_advise(arena.data_ptr(), arena.nbytes // _PAGE * _PAGE)
        packed = [
            PackedWeight(panels, *weight.shape)
            for weight, panels in zip(weights, arena[: sum(sizes)].split(sizes), strict=True)
        ]
        for weight, to in zip(weights, packed, strict=True):
            weight = weight.detach().contiguous()
            _require("a weight", weight, (to.outputs, to.inputs))
            self._library.aisp_pack(weight.data_ptr(), to.panels.data_ptr(), to.outputs, to.inputs)
        return packed

    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        """x [rows, inputs] times packed weights [outputs, inputs] plus bias [outputs] -> [rows, outputs], float32.

        A row's bits do not depend on the other rows or on how many there are.

        Raises:
            ValueError: another dtype, device or width.
        """
        x = x.contiguous()
        _require("the input of a linear layer", x, (len(x), packed.inputs))
        if bias is not None:
            bias = bias.contiguous()
            _require("a bias", bias, (packed.outputs,))
        y = x.new_empty(len(x), packed.outputs)
        pointers = (None if t is None else t.data_ptr() for t in (x, packed.panels, bias, y))
        sizes = (len(x), packed.outputs, packed.inputs)
        if self._library.aisp_linear(*pointers, *sizes, torch.get_num_threads()):
            raise MemoryError("no memory for a linear layer")
        return y

    def attend(
        self, layer: Layer, held: tuple[Tensor, Tensor, Tensor | None], lanes: Lanes, step: Tensor, query: Tensor
    ) -> Tensor:
        """Attention of a tile's rows over their prompts and suffixes: query [W, H, 1, key_dim] -> [W, 1, H, value_dim],
        zeros for a row that is in no lane.

        held: the suffixes' keys and values [blocks, slots, heads, block, dim], and sinks [H] or None. step: int64
        [slots], each row's position in its suffix, below blocks * block.

        Raises:
            ValueError: what C would misread.
        """
        keys, values, sinks = held
        count, heads = len(query), layer.heads * layer.group
        query = query.contiguous()
        _require("a query", query, (count, heads, 1, layer.key_dim))
        sizes = (len(keys), layer.slots, layer.heads, layer.block)
        _require("the suffixes' keys", keys, (*sizes, layer.key_dim))
        _require("the suffixes' values", values, (*sizes, layer.value_dim))
        _require("the rows' positions", step, (layer.slots,), torch.int64)
        if sinks is not None:
            sinks = sinks.detach().float().contiguous()
            _require("sinks", sinks, (heads,))
        if lanes.size > count:
            raise ValueError(f"the lanes hold {lanes.size} rows, the query {count}")
        layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        layer.sinks = None if sinks is None else sinks.data_ptr()
        make = query.new_empty if len(lanes.rows) == count else query.new_zeros
        out = make(count, 1, heads, layer.value_dim)
        pointers = (t.data_ptr() for t in (lanes.rows, step, query, out))
        where = (ctypes.addressof(layer), ctypes.addressof(lanes.table), len(lanes.table))
        if self._library.aisp_attend(*where, *pointers, torch.get_num_threads()):
            raise MemoryError("no memory for attention")
        return out


def _require(what: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """C reads what a pointer points to: another dtype or shape would be read beyond its end."""
    if tensor.dtype != dtype or not tensor.is_cpu or tuple(tensor.shape) != shape or not tensor.is_contiguous():
        order = "" if tensor.is_contiguous() else ", not contiguous"
        raise ValueError(
            f"{what} are {tensor.dtype} {list(tensor.shape)} on {tensor.device}{order}; "
            f"the kernels take {dtype} {list(shape)} on cpu"
        )


def usable() -> Kernels | None:
    """The kernels, if they can be had with the threads that PyTorch may use now."""
    kernels = load()
    return kernels if kernels is not None and (kernels.threaded or torch.get_num_threads() == 1) else None


@cache
def load() -> Kernels | None:
    """The kernels, compiled before or now; None where they cannot be had, which the log explains."""
    found = build.library(DEFINES)
    return None if found is None else Kernels(*found)
