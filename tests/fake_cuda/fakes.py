"""A CUDA device that computes nothing: tensors have shapes, dtypes and a device, and every operation is looked at.

`FakeTensorMode` carries the shapes and refuses operations over two devices. A dispatch mode above it counts kernels,
notes each look of the host at the device, and what would break a CUDA graph while one is recorded. Numbers are not
computed: whatever the host reads is 1.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "cuda:0"  # "cuda" alone would ask the driver which one that is
FREE, TOTAL = 124 << 30, 141 << 30
# operations that start no kernel
_VIEWS = """
    view _unsafe_view reshape _reshape_alias transpose t permute expand slice select unsqueeze squeeze detach alias
    as_strided split split_with_sizes chunk unbind unfold diagonal view_as lift_fresh empty empty_like new_empty
    empty_strided new_empty_strided sym_size sym_stride is_same_size is_pinned
"""
VIEWS = frozenset(_VIEWS.split())
SHAPED_BY_DATA = frozenset(("nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "bincount"))


@dataclass
class Report:
    """What was seen. Each place is an operation and the line of the project that asked for it."""

    illegal: list[str] = field(default_factory=list)  # while a graph was recorded
    syncs: Counter[str] = field(default_factory=Counter)  # the host waited for the device
    uploads: Counter[str] = field(default_factory=Counter)  # copies from pageable memory to the device
    launches: int = 0
    captured: list[int] = field(default_factory=list)  # launches of each graph, as it was recorded
    replays: int = 0


class Spy(TorchDispatchMode):
    """Notes what passes. `recording` is whether a CUDA graph is open."""

    def __init__(self) -> None:
        super().__init__()
        self.report, self.recording = Report(), False

    def waited(self, what: str) -> None:
        place = f"{what} at {_place()}"
        if self.recording:
            self.report.illegal.append(place)
        else:
            self.report.syncs[place] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, name = func._schema.name.split("::")
        if namespace == "prim" and name == "device" and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for all the time
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        on_device = any(t.is_cuda for t in given)
        if name in ("_local_scalar_dense", "item"):  # the second in inference mode
            if on_device:
                self.waited("item")
            return True if given[0].dtype == torch.bool else 1.0 if given[0].dtype.is_floating_point else 1
        if name in SHAPED_BY_DATA and on_device:
            self.waited(f"{name}, whose shape depends on data,")
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if name == "copy_" and len(args) > 2:
            kwargs = {**kwargs, "non_blocking": args[2]}
        self._moved(name, given, made, kwargs)
        if name.rstrip("_") not in VIEWS and any(t.is_cuda for t in (*given, *made)):
            self.report.launches += 1
        return out

    def _moved(self, name: str, given: list[Any], made: list[Any], kwargs: dict[str, Any]) -> None:
        """Copies between host and device. Those that the host does not wait for are asked for by `non_blocking`."""
        if name not in ("_to_copy", "copy_") or len({t.device.type for t in (*given, *made)}) < 2:
            return
        source, target = (given[1], given[0]) if name == "copy_" else (given[0], made[0])
        asynchronous = bool(kwargs.get("non_blocking"))
        if target.is_cuda:
            if self.recording:
                self.report.illegal.append(f"copy to the device at {_place()}")
            elif not asynchronous:
                self.report.uploads[_place()] += 1
        elif source.is_cuda and not asynchronous:
            self.waited("copy to the host")

    def open(self, *_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
        """`torch.cuda.graph`."""

        @contextlib.contextmanager
        def recording() -> Iterator[None]:
            before, self.recording = self.report.launches, True
            try:
                yield
            finally:
                self.recording = False
                self.report.captured.append(self.report.launches - before)
                self.report.launches = before

        return recording()

    def graph(self) -> Any:
        """`torch.cuda.CUDAGraph`."""

        def replay() -> None:
            self.report.replays += 1

        return SimpleNamespace(replay=replay)


def _place() -> str:
    """The innermost line of the project, or of transformers, that is being run."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        for root in ("/aisp_ray/", "/transformers/"):
            if root in file:
                return f"{root.strip('/')}/{file.split(root)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


_NUMPY = {torch.float64: np.float64, torch.int64: np.int64, torch.int32: np.int32, torch.bool: np.bool_}


def _ones(tensor: Any) -> np.ndarray:
    return np.ones(tuple(tensor.shape), dtype=_NUMPY.get(tensor.dtype, np.float32))


def _driver(spy: Spy) -> dict[str, Any]:
    """What stands in for functions of `torch.cuda`."""
    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: spy.waited("Stream.synchronize"))
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: spy.waited("Event.synchronize"))
    properties = SimpleNamespace(multi_processor_count=132, major=9, minor=0, total_memory=TOTAL, name="fake H200")
    return {
        "graph": spy.open,
        "CUDAGraph": spy.graph,
        "Stream": lambda *_, **__: stream,
        "Event": lambda *_, **__: event,
        "current_stream": lambda *_: stream,
        "set_stream": lambda _: None,
        "stream": lambda _: contextlib.nullcontext(),
        "graph_pool_handle": lambda: (0, 1),
        "mem_get_info": lambda *_: (FREE, TOTAL),
        "memory_reserved": lambda *_: 0,
        "get_per_process_memory_fraction": lambda *_: 1.0,
        "set_sync_debug_mode": lambda _: None,
        "get_sync_debug_mode": lambda: 0,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: spy.waited("torch.cuda.synchronize"),
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties,
        "current_device": lambda: 0,
    }


@contextlib.contextmanager
def fake_cuda(guard: str) -> Iterator[Spy]:
    """Within it, DEVICE can be computed on. guard: the compiled guard.cpp.

    The guard disturbs PyTorch's way out: end the process by `os._exit`.
    """
    torch.ops.load_library(guard)
    spy = Spy()

    def read(real: Callable[..., Any], as_list: bool) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(self, FakeTensor):
                return real(self, *args, **kwargs)
            if self.is_cuda:
                spy.waited("tolist" if as_list else "numpy")
            return _ones(self).tolist() if as_list else _ones(self)

        return method

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(self), self.detach().clone())

    swaps = [(torch.cuda, name, fake) for name, fake in _driver(spy).items()]
    swaps += [(torch.Tensor, "tolist", read(torch.Tensor.tolist, True))]
    swaps += [(torch.Tensor, "numpy", read(torch.Tensor.numpy, False))]
    swaps += [(FakeTensor, "tolist", read(torch.Tensor.tolist, True)), (FakeTensor, "__deepcopy__", deepcopy)]
    before = [(where, name, getattr(where, name)) for where, name, _ in swaps]
    for where, name, fake in swaps:
        setattr(where, name, fake)
    try:
        with FakeTensorMode(allow_non_fake_inputs=False), spy:
            yield spy
    finally:
        for where, name, real in before:
            setattr(where, name, real)
