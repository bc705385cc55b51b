"""Comparing mathematical answers in a process of its own, with limits. See `_answers.py` and `maths_child.py`."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from aisp_ray.errors import LoadError

ROOT = Path(__file__).resolve().parents[3]
CHILD = "aisp_ray.rewards.sandbox.maths_child"
_START_SECONDS = 120.0  # by the clock, on a machine that does much else
_PATIENCE = 20.0  # seconds by the clock for each processor second: load decides nothing


class Comparer:
    """A process that compares answers, started again when one was more than it could bear.

    Raises:
        LoadError: the process does not start, with its last words.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] | None = None
        self._number = 0
        if not self.same("0.5", "\\frac12", 1e-6, True):
            raise LoadError(f"the process that compares answers does not work: {self._last_words()}")

    def same(self, given: str, expected: str, tolerance: float, percent_as_number: bool) -> bool:
        """As `_answers.same`; False where that takes more than `seconds` of processor time or too much memory."""
        with self._lock:
            child = self._child if self._child is not None and self._child.poll() is None else None
            patience = _PATIENCE * self.seconds + (_START_SECONDS if child is None else 0)
            child = child or self._start()
            self._number += 1
            question = json.dumps([self._number, given, expected, tolerance, percent_as_number])
            answer = _ask(child, question, time.monotonic() + patience)
            if answer is None or answer[0] != self._number:
                self._stop()
                return False
            return answer[1] is True

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", CHILD, str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=kept | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "PYTHONHASHSEED": "0"},
        )
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _last_words(self) -> str:
        if self._words is None:
            return "it says nothing"
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it says nothing"


def _ask(child: subprocess.Popen[bytes], question: str, deadline: float) -> list[Any] | None:
    """The process's answer to a question; None if it ends or is still busy at the deadline."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(question.encode() + b"\n")
        child.stdin.flush()
    except OSError:
        return None
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            chunk = os.read(child.stdout.fileno(), 4096) if left > 0 and selector.select(left) else b""
            if not chunk:
                return None
            data += chunk
    return list(json.loads(data))
