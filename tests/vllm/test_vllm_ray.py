"""A job on the embedded demo with two vLLM actors, one of which is killed in the middle: the fast engine's rows."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parent.parent.parent
LIMIT = 4
UNEQUAL = {"run_id", "config_hash", "policy_seconds", "reward_seconds", "wall_seconds"}


def start(out, *words):
    command = [sys.executable, "jobs/eval.py", f"limit={LIMIT}", "run.address=local", "run.progress_seconds=2"]
    log = open(out.with_suffix(".log"), "w")  # noqa: SIM115 - the process writes it
    return subprocess.Popen(
        [*command, "report=false", f"out={out}", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def policy_actors(process):
    """The policy actors of this run's own Ray, which its driver started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if (child.cmdline() or [""])[0].startswith("ray::PolicyActor"):
                found.append(child)
        except psutil.Error:
            continue
    return found


def rows(out):
    found = {}
    for path in sorted((out / "rows").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[row["method"], row["prompt_id"]] = {name: row[name] for name in row if name not in UNEQUAL}
    return found


def kill_one(process, out):
    """Kill a policy actor once two of them are there and responses have been drawn; whether that was done in time."""
    log = out.with_suffix(".log")
    while process.poll() is None:
        time.sleep(0.5)
        actors = policy_actors(process)
        if len(actors) >= 2 and "what the reward reads" in log.read_text():
            actors[0].kill()
            return True
    return False


def test_rows_are_the_fast_engines_though_an_actor_is_killed(tmp_path):
    fast = start(tmp_path / "fast", "policy.engine=fast")
    assert fast.wait() == 0, (tmp_path / "fast.log").read_text()
    words = ("policy.engine=vllm", "policy.actors=[2,2]", "policy.num_cpus=0.25", "policy.slots=32")
    vllm = start(tmp_path / "vllm", *words)
    killed = kill_one(vllm, tmp_path / "vllm")
    log = tmp_path / "vllm.log"
    assert vllm.wait() == 0, log.read_text()
    assert killed, log.read_text()
    expected, found = rows(tmp_path / "fast"), rows(tmp_path / "vllm")
    assert len(expected) == 4 * LIMIT
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        for column, value in row.items():
            if isinstance(value, float):
                assert found[name][column] == pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True), (name, column)
            elif column != "extra":
                assert_same(found[name][column], value, (name, column))


def assert_same(found, expected, where):
    if isinstance(expected, list) and expected and isinstance(expected[0], float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4, nan_ok=True), where
    else:
        assert found == expected, where
