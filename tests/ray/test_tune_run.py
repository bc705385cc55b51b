"""A search over real actors: models load once, a killed search goes on."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from aisp_ray.cluster.fakes import SleepPolicy, SleepReward
from aisp_ray.tune.cli import make_plan, read_command

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent.parent


def tune_plan(out, path, step_seconds=0.0005):
    words = ["tune=any", "tune.method=aisp", "tune.keys={sigma: {low: 0.1, high: 2.0}}", "tune.samples=8"]
    words += ["tune.set={n: 4}", "trials=10", "limit=8", "heldout=null", "heldout_limit=6", "run.snapshot_seconds=0.2"]
    words += ["data=prompts", f"data.path={path}", f"out={out}", "batch=5", "first_rung=2"]
    plan = make_plan(read_command(words)[1])
    policy = SleepPolicy(num_cpus=0.2, step_seconds=step_seconds)
    return dataclasses.replace(plan, policy=policy, reward=SleepReward(num_cpus=0.2))


def trials_of(out):
    table = pq.read_table(f"{out}/trials.parquet")
    return table.drop_columns(["policy_seconds", "reward_seconds"]).to_pylist()


def test_all_trials_share_one_actor_a_model(cluster, prompts, tmp_path, monkeypatch):
    from aisp_ray.tune import models, run

    pools, make_pool = [], models.make_pool

    def recorded(*args, **kwargs):
        pools.append(make_pool(*args, **kwargs))
        return pools[-1]

    monkeypatch.setattr(models, "make_pool", recorded)
    assert run.run(tune_plan(tmp_path / "out", prompts(14))) == 0
    assert [len(pool.gone) for pool in pools] == [1, 1]  # what was started and ended, of policy and reward
    rows = trials_of(tmp_path / "out")
    assert len(rows) == 11
    assert {row["num_prompts"] for row in rows if row["state"] == "complete"} == {8}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["heldout"]["preset"]["count"] == 6


@pytest.mark.slow
def test_a_search_killed_in_the_middle_goes_on_to_the_same_table(cluster, prompts, tmp_path):
    from aisp_ray.tune import run

    path = prompts(14)
    run.run(tune_plan(tmp_path / "whole", path))
    out = tmp_path / "killed"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster.address}
    command = [sys.executable, __file__, str(out), path]
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while len(list(out.glob("evaluations/*.parquet"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = pq.read_table(out / "evaluations").num_rows
    assert not (out / "summary.json").exists()
    assert run.run(tune_plan(out, path, 0.02)) == 0
    assert trials_of(out) == trials_of(tmp_path / "whole")
    after = pq.read_table(out / "evaluations").to_pylist()
    assert len(after) == len({(row["setting"], row["prompt_id"]) for row in after})
    assert json.loads((out / "summary.json").read_text())["cost"]["new"] == len(after) - before


if __name__ == "__main__":
    from aisp_ray.tune.run import run as run_plan

    sys.exit(run_plan(tune_plan(sys.argv[1], sys.argv[2], 0.02)))
