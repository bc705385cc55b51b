"""`ray job submit`, `ray job stop` and the same command again, on a head of its own."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from heads import Head

from tests.plans import rows_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = f"/tmp/aisp-{os.getpid()}"  # sockets have short paths
    head = Head(folder, ["--num-cpus=4"])
    try:
        head.wait()
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def working_dir(tmp_path):
    """What `--working-dir .` would send: the package and a script."""
    folder = tmp_path / "work"
    ignore = shutil.ignore_patterns("__pycache__", "models")
    shutil.copytree(ROOT / "aisp_ray", folder / "aisp_ray", ignore=ignore)
    shutil.copy(HERE.parent / "plans.py", folder / "plans.py")
    return str(folder)


def submit(head, working_dir, settings, *words, check=True):
    command = ["job", "submit", "--working-dir", working_dir, *words, "--", "python", "plans.py", json.dumps(settings)]
    return head.ray(*command, check=check)


def job_info(head, name):
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(head.env["RAY_API_SERVER_ADDRESS"]).get_job_info(name)


def test_a_job_is_submitted_stopped_and_goes_on(head, working_dir, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settings = {"out": str(tmp_path / "out"), "path": prompts(24), "kappa": 8, "run": {"chunk_rows": 8}}
    slow = {**settings, "policy": {"step_seconds": 0.05}}
    submit(head, working_dir, slow, "--submission-id", "first", "--no-wait")
    snapshot = tmp_path / "out" / "_state" / "inflight.json"
    deadline = time.monotonic() + 300
    while not (snapshot.exists() and json.loads(snapshot.read_text())["searches"]):
        assert time.monotonic() < deadline, head.ray("job", "logs", "first").stdout
        time.sleep(0.1)
    head.ray("job", "stop", "first")
    state = json.loads(snapshot.read_text())
    assert state["ended"], "the run had no time to write its snapshot"
    assert state["searches"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["exit_code"] == 143
    again = submit(head, working_dir, settings, "--submission-id", "second")
    assert "resuming:" in again.stdout + again.stderr
    rows = rows_of(settings["out"])
    assert len(rows) == 48
    assert {row["status"] for row in rows.values()} == {"ok"}


def test_the_exit_code_of_a_job_says_what_happened(head, working_dir, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settings = {"out": str(tmp_path / "out"), "path": prompts(4), "policy": {"load_error": "no such checkpoint"}}
    failed = submit(head, working_dir, settings, "--submission-id", "wrong", check=False)
    assert failed.returncode != 0
    assert "the policy does not load: ValueError: no such checkpoint" in failed.stdout + failed.stderr
    assert job_info(head, "wrong").driver_exit_code == 1
    relative = submit(head, working_dir, {**settings, "out": "outputs/x"}, "--submission-id", "relative", check=False)
    assert "throw-away copy" in relative.stdout + relative.stderr
    assert job_info(head, "relative").driver_exit_code == 2
