"""Running untrusted Python: one process a program, with no rights but computing. See `child.py`."""

from __future__ import annotations

import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).with_name("child.py")
MAX_REPORT = 1 << 20  # bytes; a program that finds the report pipe and floods it is killed
ESCAPES = """
import os, socket, subprocess
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
"""
ESCAPE_TESTS = (
    "assert refused(lambda: open('made', 'w'))",
    "assert refused(lambda: os.mkdir('made'))",
    "assert refused(os.fork)",
    "assert refused(socket.socket)",
    "assert refused(lambda: os.kill(os.getppid(), 0))",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    test_seconds: float = 3.0  # processor seconds of the program's own statements, and of each test
    total_seconds: int = 20  # processor seconds in all
    wall_seconds: float = 60.0  # seconds by the clock, against sleeping; far above the others: load decides nothing
    memory_mb: int = 1024  # address space, MiB
    sandbox: bool = True  # False: limits only


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What became of a program: whether it ran, and for each test True or a text that says what went wrong."""

    program: bool | str
    tests: tuple[bool | str, ...]

    @property
    def passed(self) -> int:
        return sum(result is True for result in self.tests)


def run(program: str | Sequence[str], tests: Sequence[str], limits: Limits) -> ProgramResult:
    """Run a program, one source or several in order, and its tests in a process of their own.

    Never raises for what the program does.
    """
    key = secrets.token_hex(16)
    job = {
        "key": key,
        "parent": os.getpid(),
        "program": [program] if isinstance(program, str) else list(program),
        "tests": list(tests),
        "test_seconds": limits.test_seconds,
        "cpu_seconds": limits.total_seconds,
        "wall_seconds": math.ceil(limits.wall_seconds) + 5,  # should this process be gone by then
        "memory_mb": limits.memory_mb,
        "sandbox": limits.sandbox,
    }
    with tempfile.TemporaryDirectory(prefix="aisp-answer-") as folder:
        lines, ending = _report(json.dumps(job).encode(), folder, limits.wall_seconds)
    results: dict[int | str, bool | str] = {}
    for line in lines:
        if (reported := _reported(line, key)) and reported[0] not in results:
            results[reported[0]] = reported[1]
    ran = results.get("program", ending)
    missing = "the program did not run" if ran is not True else ending
    return ProgramResult(ran, tuple(results.get(at, missing) for at in range(len(tests))))


def _reported(line: bytes, key: str) -> tuple[int | str, bool | str] | None:
    """(what, its result) of a line of the report; None for what the program itself wrote there."""
    if not line.startswith(f'["{key}", '.encode()):
        return None
    try:
        _, what, result = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    known = isinstance(what, int | str) and not isinstance(what, bool) and (result is True or isinstance(result, str))
    return (what, result) if known else None


def contained() -> str | None:
    """None if programs are contained on this system; otherwise what is missing, as a sentence."""
    outcome = run(ESCAPES, ESCAPE_TESTS, Limits())
    if outcome.program is not True:
        return f"a harmless program did not run in the sandbox: {outcome.program}"
    if outcome.passed < len(ESCAPE_TESTS):
        failed = [test for test, result in zip(ESCAPE_TESTS, outcome.tests, strict=True) if result is not True]
        return f"a program could escape the sandbox: {failed[0]}"
    return None


def _report(job: bytes, folder: str, wall_seconds: float) -> tuple[list[bytes], str]:
    """(lines the child reported, how it ended)."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    child: subprocess.Popen[bytes] = subprocess.Popen(
        [sys.executable, "-P", "-s", "-B", str(CHILD)],  # -P: this folder is not on the answer's import path
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    assert child.stdin is not None
    try:
        try:
            child.stdin.write(job)
            child.stdin.close()
        except BrokenPipeError:
            pass
        data, ending = _read(child, time.monotonic() + wall_seconds)
    finally:
        _kill(child)
    code = child.returncode
    if ending is None:
        ending = f"the process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"
    return data.splitlines(), ending


def _read(child: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, str | None]:
    assert child.stdout is not None
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return data, "it was still running at the time limit"
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                break
            data += chunk
            if len(data) > MAX_REPORT:
                return data, "it reported too much"
    try:
        child.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return data, "it was still running at the time limit"
    return data, None


def _kill(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            child.kill()
    child.wait()
    child.stdout.close()
