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
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-ffp-contract=off")
_OPTIONAL = (("-fopenmp",), ())  # without it, products run on one thread only
_PAGE = 1 << 21  # bytes of a large page
_held: list[tempfile.TemporaryDirectory[str]] = []  # gone when the process ends


class Layer(ctypes.Structure):
    """`Layer` of kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "group", "key_dim", "value_dim", "block", "slots", "window")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "sinks")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    )


class Kernels:
    """The compiled functions. `threaded`: whether they can use several threads; `vector`: floats of a vector."""

    def __init__(self, path: Path, threaded: bool):
        library = ctypes.CDLL(str(path))
        pointer, whole = ctypes.c_void_p, ctypes.c_long
        for name, arguments in {
            "aisp_vector": (),
            "aisp_packed_floats": (whole, whole),
            "aisp_advise": (pointer, whole),
            "aisp_pack": (pointer, pointer, whole, whole),
            "aisp_linear": (pointer, pointer, pointer, pointer, whole, whole, whole, ctypes.c_int),
            "aisp_attend": (pointer, pointer, whole, pointer, pointer, pointer, pointer, ctypes.c_int),
        }.items():
            getattr(library, name).argtypes = arguments
        for name in ("aisp_vector", "aisp_packed_floats"):
            getattr(library, name).restype = whole
        self._library, self.threaded = library, threaded
        self.vector: int = library.aisp_vector()

    def pack(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Weights [outputs, inputs], float32, in the order in which `linear` reads them, side by side in memory."""
        sizes = [self._library.aisp_packed_floats(*weight.shape) for weight in weights]
        spare = _PAGE // 4
        arena = torch.empty(sum(sizes) + spare)
        arena = arena[-(arena.data_ptr() // 4) % spare :]  # from the start of a large page on
        self._library.aisp_advise(arena.data_ptr(), arena.nbytes // _PAGE * _PAGE)
        packed = list(arena[: sum(sizes)].split(sizes))
        for weight, to in zip(weights, packed, strict=True):
            weight = weight.detach().contiguous()
            self._library.aisp_pack(weight.data_ptr(), to.data_ptr(), *weight.shape)
        return packed

    def linear(self, x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
        """x [rows, inputs] times packed weights [outputs, inputs] plus bias [outputs] -> [rows, outputs], float32.

        A row's bits do not depend on the other rows or on how many there are.
        """
        x = x.contiguous()
        rows, inputs = x.shape
        y = x.new_empty(rows, outputs)
        pointer = None if bias is None else bias.data_ptr()
        self._library.aisp_linear(
            x.data_ptr(), packed.data_ptr(), pointer, y.data_ptr(), rows, outputs, inputs, torch.get_num_threads()
        )
        return y

    def attend(self, layer: Layer, lanes: Tensor, rows: Tensor, step: Tensor, query: Tensor, out: Tensor) -> None:
        """Attention of the rows of all lanes over their prompts and suffixes, into `out`; see kernels.c.

        lanes: int64 [lanes, 7], the fields of `Lane`. rows: int64, the lanes' rows one after the other.
        """
        self._library.aisp_attend(
            ctypes.addressof(layer),
            lanes.data_ptr(),
            len(lanes),
            rows.data_ptr(),
            step.data_ptr(),
            query.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )


def usable() -> Kernels | None:
    """The kernels, if they can be had with the threads that PyTorch may use now."""
    kernels = load()
    return kernels if kernels is not None and (kernels.threaded or torch.get_num_threads() == 1) else None


@cache
def load() -> Kernels | None:
    """The kernels, compiled before or now; None, with a log line that says why, where they cannot be had."""
    command = compiler()
    if not command:
        log.info("engine: no C compiler found (CC, cc, gcc, clang): products run on PyTorch's operations alone")
        return None
    problem = ""
    for extra in _OPTIONAL:
        try:
            return Kernels(_compiled([*command, *_FLAGS, *extra]), threaded=bool(extra))
        except subprocess.CalledProcessError as error:
            problem = error.stderr.strip()[-500:]
        except (OSError, AttributeError) as error:
            problem = str(error)
    log.info("engine: its kernels do not compile here, products run on PyTorch's operations alone: %s", problem)
    return None


def compiler() -> list[str]:
    """The command of a C compiler, empty if there is none."""
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return shlex.split(os.environ.get("CC", "")) or [path for path in found if path][:1]


def _compiled(command: Sequence[str]) -> Path:
    """The shared library of this command, compiled once for each source, compiler and kind of processor."""
    source = resources.files("aisp_ray.engine").joinpath("kernels.c").read_bytes()
    about = (source, repr(command).encode(), _processor().encode())
    name = f"kernels-{hashlib.sha256(b'|'.join(about)).hexdigest()[:24]}.so"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aisp_ray"
        if (folder / name).exists():
            return folder / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        work = tempfile.TemporaryDirectory(dir=folder)
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        _held.append(tempfile.TemporaryDirectory(prefix="aisp_ray-"))
        folder = Path(_held[-1].name)
        work = tempfile.TemporaryDirectory(dir=folder)
    with work as path:
        built = Path(path, name)
        Path(path, "kernels.c").write_bytes(source)
        command = [*command, str(Path(path, "kernels.c")), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(built, folder / name)  # two processes may compile at once: each leaves a whole file
    return folder / name


def _processor() -> str:
    """What `-march=native` goes by; machines that share a home folder may differ in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
