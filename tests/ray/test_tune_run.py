"""A search over real actors: the models load once."""

import dataclasses
import json

import pyarrow.parquet as pq
import pytest

from aisp_ray.commands.tune import make_plan, read_command
from tests.fakes import SleepPolicy, SleepReward

pytestmark = pytest.mark.ray


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
    from aisp_ray.cluster import remote
    from aisp_ray.tune import run

    pools, make_pool = [], remote.make_pool

    def recorded(*args, **kwargs):
        pools.append(make_pool(*args, **kwargs))
        return pools[-1]

    monkeypatch.setattr(remote, "make_pool", recorded)
    assert run.run(tune_plan(tmp_path / "out", prompts(14))) == 0
    assert [len(pool.gone) for pool in pools] == [1, 1]  # what was started and ended, of policy and reward
    rows = trials_of(tmp_path / "out")
    assert len(rows) == 11
    assert {row["num_prompts"] for row in rows if row["state"] == "complete"} == {8}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["heldout"]["preset"]["count"] == 6
