"""The head of the cluster dies in the middle of a run; the same command on a new head goes on."""

import json
import os
import shutil
from pathlib import Path

import pytest
from heads import Head

from tests.plans import rows_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def start_head():
    heads = []

    def start():
        heads.append(Head(f"/tmp/aisp-{os.getpid()}-{len(heads)}", ["--num-cpus=4"]))  # sockets have short paths
        return heads[-1]

    yield start
    for head in heads:
        head.stop()
        shutil.rmtree(head.folder, ignore_errors=True)


def under_way(out):
    path = Path(out, "_state", "inflight.json")
    return len(json.loads(path.read_text())["searches"]) if path.exists() else 0


def test_the_same_command_goes_on_under_a_new_head(start_head, start_driver, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    run = {"chunk_rows": 4, "snapshot_seconds": 0.5, "particles": True}
    settings = {"out": str(tmp_path / "out"), "path": prompts(16), "kappa": 8, "run": run}
    slow = {**settings, "policy": {"step_seconds": 0.05}}
    head = start_head()
    driver = start_driver(slow, f"127.0.0.1:{head.port}")
    driver.wait_for(lambda: under_way(slow["out"]) > 4)
    head.stop()
    code, said = driver.wait(300)
    assert code not in (0, 3), said
    address = f"127.0.0.1:{start_head().port}"
    code, said = start_driver(settings, address).wait(300)
    assert code == 0, said
    assert "resuming:" in said
    clean = {**settings, "out": str(tmp_path / "clean")}
    assert start_driver(clean, address).wait(300)[0] == 0
    for folder in ("rows", "particles"):
        assert rows_of(settings["out"], folder) == rows_of(clean["out"], folder)
