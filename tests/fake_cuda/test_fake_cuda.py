"""The CUDA path without a GPU: what a step launches, when the host waits, and that nothing breaks a recording.

`run.py` drives the engine on fake tensors in a process of its own. What this cannot show: numbers, memory, times, what
a kernel itself forbids while it is recorded, and that equal shapes give equal bits. tests/gpu is for that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
# launches of one recorded step of two layers (AISP), as measured; a change that adds some says so here
LAUNCHES = {"llama": 217, "gemma3": 335, "lfm2:flash": 150}
QUICK = ("llama", "lfm2:flash")  # gemma3 is slow
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHES]
OTHERS = ("lfm2", "llama:flash", "qwen3", "mistral", "gemma2", "phi3", "phi", "gpt2", "qwen3_moe", "gpt_oss", "granite")
WAITS = 1  # of the host for the device, in a window of up to 8 steps in which no row begins or ends


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> str:
    """guard.cpp, compiled."""
    compiler = next(
        (path for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (path := shutil.which(name))),
        None,
    )
    if compiler is None:
        pytest.skip("no C++ compiler for the device guard")
    root, built = Path(torch.__file__).parent, tmp_path_factory.mktemp("guard") / "guard.so"
    if not (root / "include").is_dir():
        pytest.skip("this PyTorch comes without its C++ headers")
    command = [compiler, "-shared", "-fPIC", "-std=c++20", "-O0", f"-I{root / 'include'}", str(HERE / "guard.cpp")]
    done = subprocess.run([*command, f"-L{root / 'lib'}", "-lc10", "-o", str(built)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(built)


def run(guard: str, *names: str) -> dict[str, dict[str, Any]]:
    paths = [str(HERE.parents[1]), str(HERE.parent / "engine"), str(HERE)]
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), guard, *names],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="session")
def seen(guard: str) -> Callable[[str], dict[str, Any]]:
    """What was seen of an architecture; the quick ones share a process."""
    ended: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in ended:
            ended.update(run(guard, *(QUICK if name in QUICK else (name,))))
        return ended[name]

    return get


def check(seen: dict[str, Any]) -> None:
    assert "error" not in seen, seen["error"]  # a mixture of devices raises as well
    assert seen["illegal"] == []
    assert seen["enabled"]
    assert seen["device"] == "cuda"
    assert all(captured for captured in seen["captured"].values())
    assert seen["replays"] > 8


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_step_neither_waits_nor_reads_the_host(name: str, seen: Callable[[str], dict[str, Any]]) -> None:
    check(seen(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_launches_no_more_than_it_did(name: str, seen: Callable[[str], dict[str, Any]]) -> None:
    budget, launches = LAUNCHES[name], max(seen(name)["captured"]["aisp"])
    assert launches <= budget
    assert launches > 0.8 * budget, "fewer than before: lower the budget"


@pytest.mark.parametrize("name", NAMES)
def test_the_host_waits_once_for_all_steps_of_a_window(name: str, seen: Callable[[str], dict[str, Any]]) -> None:
    syncs = seen(name)["steady"]["syncs"]
    assert sum(syncs.values()) <= WAITS, syncs


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_recorded_as_well(name: str, guard: str) -> None:
    check(run(guard, name)[name])
