"""The engine's own CPU products (`kernels.c`), compiled on first use for the machine they run on.

They are optional: without a C compiler the engine computes with PyTorch's operations alone, slower and as exact.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)
# the last two: no compiler may change the numbers, nor how denormal ones are treated in the whole process
_FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-ffp-contract=off", "-fno-fast-math")
_SECONDS = 120  # for the compiler
_OPTIONAL = (("-fopenmp",), ())  # without it, products run on one thread only
_END = b"\nthe end\n"  # behind a library: one cut short, by a full disk, would end the process that loads it
_PAGE = 1 << 21  # bytes of a large page
_held: list[tempfile.TemporaryDirectory[str]] = []  # gone when the process ends


class Layer(ctypes.Structure):
    """`Layer` of kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "group", "key_dim", "value_dim", "block", "slots", "window")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "sinks")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    )


@dataclass(frozen=True, slots=True)
class Packed:
    """A linear layer's weights in the order in which `Kernels.linear` reads them."""

    panels: Tensor
    outputs: int
    inputs: int


class Kernels:
    """The compiled functions. `threaded`: whether they can use several threads."""

    def __init__(self, path: Path, threaded: bool):
        library = ctypes.CDLL(str(path))
        pointer, whole = ctypes.c_void_p, ctypes.c_long
        for name, arguments in {
            "aisp_packed_floats": (whole, whole),
            "aisp_advise": (pointer, whole),
            "aisp_pack": (pointer, pointer, whole, whole),
            "aisp_linear": (pointer, pointer, pointer, pointer, whole, whole, whole, ctypes.c_int),
            "aisp_attend": (pointer, pointer, whole, pointer, pointer, pointer, pointer, ctypes.c_int),
        }.items():
            getattr(library, name).argtypes = arguments
        library.aisp_packed_floats.restype = whole
        self._library, self.threaded = library, threaded

    def pack(self, weights: Sequence[Tensor]) -> list[Packed]:
        """Weights [outputs, inputs], float32 on the CPU, side by side in memory."""
        sizes = [self._library.aisp_packed_floats(*weight.shape) for weight in weights]
        spare = _PAGE // 4
        arena = torch.empty(sum(sizes) + spare, dtype=torch.float32, device="cpu")
        arena = arena[-(arena.data_ptr() // 4) % spare :]  # from the start of a large page on
        self._library.aisp_advise(arena.data_ptr(), arena.nbytes // _PAGE * _PAGE)
        packed = [
            Packed(panels, *weight.shape)
            for weight, panels in zip(weights, arena[: sum(sizes)].split(sizes), strict=True)
        ]
        for weight, to in zip(weights, packed, strict=True):
            weight = weight.detach().contiguous()
            _require("a weight", weight, to.inputs)
            self._library.aisp_pack(weight.data_ptr(), to.panels.data_ptr(), to.outputs, to.inputs)
        return packed

    def linear(self, x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
        """x [rows, inputs] times packed weights [outputs, inputs] plus bias [outputs] -> [rows, outputs], float32.

        A row's bits do not depend on the other rows or on how many there are.

        Raises:
            ValueError: another dtype, device or width.
        """
        x = x.contiguous()
        _require("the input of a linear layer", x, packed.inputs)
        if bias is not None:
            bias = bias.contiguous()
            _require("a bias", bias, packed.outputs)
        y = x.new_empty(len(x), packed.outputs)
        pointers = (x, packed.panels, bias, y)
        failed = self._library.aisp_linear(
            *(None if tensor is None else tensor.data_ptr() for tensor in pointers),
            *(len(x), packed.outputs, packed.inputs, torch.get_num_threads()),
        )
        if failed:
            raise MemoryError("no memory for a linear layer")
        return y

    def attend(self, layer: Layer, lanes: Tensor, rows: Tensor, step: Tensor, query: Tensor, out: Tensor) -> None:
        """Attention of the rows of all lanes over their prompts and suffixes, into `out`; see kernels.c.

        lanes: int64 [lanes, 7], the fields of `Lane`. rows: int64, the lanes' rows one after the other.

        Raises:
            ValueError: queries of another dtype, device or width.
        """
        _require("a query", query, layer.key_dim)
        failed = self._library.aisp_attend(
            ctypes.addressof(layer),
            lanes.data_ptr(),
            len(lanes),
            rows.data_ptr(),
            step.data_ptr(),
            query.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for attention")


def _require(what: str, tensor: Tensor, width: int) -> None:
    """C reads what a pointer points to: another dtype or shape would be read beyond its end."""
    if tensor.dtype != torch.float32 or not tensor.is_cpu or tensor.shape[-1] != width:
        raise ValueError(
            f"{what} is {tensor.dtype} on {tensor.device}, {tensor.shape[-1]} wide; "
            f"the kernels take torch.float32 on cpu, {width} wide"
        )


def usable() -> Kernels | None:
    """The kernels, if they can be had with the threads that PyTorch may use now."""
    kernels = load()
    return kernels if kernels is not None and (kernels.threaded or torch.get_num_threads() == 1) else None


@cache
def load() -> Kernels | None:
    """The kernels, compiled before or now; None, with a log line that says why, where they cannot be had."""
    try:
        command = compiler()
    except ValueError as error:
        log.info("engine: CC=%s cannot be read (%s): products run on PyTorch alone", os.environ["CC"], error)
        return None
    if not command:
        log.info("engine: no C compiler found (CC, cc, gcc, clang): products run on PyTorch's operations alone")
        return None
    problem = ""
    for extra in _OPTIONAL:
        try:
            found = _opened([*command, *_FLAGS, *extra], threaded=bool(extra))
        except subprocess.CalledProcessError as error:
            problem = error.stderr.strip()[-500:]
        except (OSError, AttributeError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        else:
            if not found.threaded:
                log.info("engine: its kernels compile without OpenMP only and serve one thread: %s", problem)
            return found
    log.info("engine: its kernels do not compile here, products run on PyTorch's operations alone: %s", problem)
    return None


def compiler() -> list[str]:
    """The command of a C compiler, empty if there is none."""
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return shlex.split(os.environ.get("CC", "")) or [path for path in found if path][:1]


def _opened(command: Sequence[str], threaded: bool) -> Kernels:
    path = _compiled(command)
    try:
        return Kernels(path, threaded)
    except OSError:  # in a folder that nothing may run from
        return Kernels(_compiled(command, apart=True), threaded)


def _compiled(command: Sequence[str], apart: bool = False) -> Path:
    """The shared library of this command, compiled once for each source, command and kind of processor.

    apart: into a folder of this process's own.
    """
    source = resources.files("aisp_ray.engine.cpu").joinpath("kernels.c").read_bytes()
    about = (source, repr(command).encode(), _processor().encode())
    name = f"kernels-{hashlib.sha256(b'|'.join(about)).hexdigest()[:24]}.so"
    if not apart:
        try:
            path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aisp_ray" / name
            if path.exists() and path.read_bytes().endswith(_END):
                return path
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _build(command, source, path)
        except (OSError, RuntimeError):  # no home, or one that cannot be written
            pass
    _held.append(tempfile.TemporaryDirectory(prefix="aisp_ray-"))
    return _build(command, source, Path(_held[-1].name, name))


def _build(command: Sequence[str], source: bytes, path: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        text, built = Path(work, "kernels.c"), Path(work, path.name)
        text.write_bytes(source)
        command = [*command, str(text), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        with built.open("ab") as file:
            file.write(_END)
        os.replace(built, path)  # two processes may compile at once: each leaves a whole file
    return path


def _processor() -> str:
    """What `-march=native` goes by; machines that share a home folder may differ in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
