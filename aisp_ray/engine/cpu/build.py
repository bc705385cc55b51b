"""Compiles `kernels.c` on first use, for the processor it runs on, and keeps the library for the next process.

A library is loaded only from a file that nobody else could have written, and only whole: the file (mode 0600) and its
folder (0700) are this user's own, and the file ends with the hash of what it holds. Else it is compiled again, where
need be into a folder of this process's own.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

log = logging.getLogger(__name__)
# the last two: no compiler may change the numbers, nor how denormal ones are treated in the whole process
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-ffp-contract=off", "-fno-fast-math")
_SECONDS = 120  # for the compiler
_OPTIONAL = (("-fopenmp",), ())  # without it, products run on one thread only
_held: list[tempfile.TemporaryDirectory[str]] = []  # gone when the process ends


def compiler() -> list[str]:
    """The command of a C compiler, empty if there is none."""
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return shlex.split(os.environ.get("CC", "")) or [path for path in found if path][:1]


def library(defines: Sequence[str]) -> tuple[ctypes.CDLL, bool] | None:
    """The compiled library and whether it can use several threads; None, with a log line that says why, where it
    cannot be had. defines: flags of the source."""
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
            found = opened([*command, *FLAGS, *defines, *extra])
        except subprocess.CalledProcessError as error:
            problem = error.stderr.strip()[-500:]
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        else:
            if not extra:
                log.info("engine: its kernels compile without OpenMP only and serve one thread: %s", problem)
            return found, bool(extra)
    log.info("engine: its kernels do not compile here, products run on PyTorch's operations alone: %s", problem)
    return None


def opened(command: Sequence[str], apart: bool = False) -> ctypes.CDLL:
    """The library of this compiler command. apart: compiled into a folder of this process's own."""
    if not apart:
        try:
            return ctypes.CDLL(str(_kept(command)))
        except (OSError, RuntimeError):  # no home, one that cannot be written, one that nothing may run from
            pass
    _held.append(tempfile.TemporaryDirectory(prefix="aisp_ray-"))
    return ctypes.CDLL(str(_compile(command, Path(_held[-1].name, "kernels.so"))))


def _kept(command: Sequence[str]) -> Path:
    """The library in the user's cache, compiled once for each source, command and kind of processor."""
    about = (_source(), repr(command).encode(), _processor().encode())
    name = f"kernels-{hashlib.sha256(b'|'.join(about)).hexdigest()[:24]}.so"
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aisp_ray" / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{path.parent} belongs to another user")
    path.parent.chmod(0o700)
    return path if _is_ours(path) else _compile(command, path)


def _is_ours(path: Path) -> bool:
    """Whether the file is whole and only this user could have written it."""
    try:
        about, held = path.lstat(), path.read_bytes()
    except OSError:
        return False
    private = stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077
    return private and held[-32:] == hashlib.sha256(held[:-32]).digest()


def _compile(command: Sequence[str], path: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        text, built = Path(work, "kernels.c"), Path(work, path.name)
        text.write_bytes(_source())
        command = [*command, str(text), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        held = built.read_bytes()
        built.write_bytes(held + hashlib.sha256(held).digest())
        built.chmod(0o600)
        os.replace(built, path)  # two processes may compile at once: each leaves a whole file
    return path


def _source() -> bytes:
    return resources.files("aisp_ray.engine.cpu").joinpath("kernels.c").read_bytes()


def _processor() -> str:
    """What `-march=native` goes by; machines that share a home folder may differ in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
