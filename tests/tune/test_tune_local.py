"""A search without Ray over models that sleep; as a script it runs one, so that a test can kill it."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from aisp_ray.commands.tune import make_plan, read_command, search
from aisp_ray.tune.run import run
from tests.fakes import SleepPolicy, SleepReward

ROOT = Path(__file__).parent.parent.parent


def plan_of(folder, name, step_seconds=0.0):
    """A search on prompts in `folder`, written to `folder`/`name`."""
    path = Path(folder, "prompts.jsonl")
    if not path.exists():
        path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(14)))
    words = ["tune=any", "tune.method=aisp", "tune.keys={sigma: {low: 0.1, high: 2.0}}", "tune.samples=8", "local=true"]
    words += ["tune.set={n: 4}", "trials=10", "limit=8", "heldout=null", "heldout_limit=6", "run.snapshot_seconds=0.1"]
    words += ["report=false"]
    words += ["data=prompts", f"data.path={path}", f"out={folder}/{name}", "batch=5", "first_rung=2"]
    plan = make_plan(read_command(words)[1])
    return dataclasses.replace(plan, policy=SleepPolicy(step_seconds=step_seconds), reward=SleepReward())


def trials_of(out):
    table = pq.read_table(f"{out}/trials.parquet")
    return table.drop_columns(["policy_seconds", "reward_seconds", "wall_seconds"]).to_pylist()


def test_a_killed_search_goes_on_to_the_table_of_an_undisturbed_one(tmp_path):
    assert run(plan_of(tmp_path, "whole")) == 0
    out = tmp_path / "killed"
    command = [sys.executable, __file__, str(tmp_path), "killed"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("evaluations/*.parquet"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (out / "summary.json").exists()
    before = pq.read_table(out / "evaluations").num_rows
    assert run(plan_of(tmp_path, "killed")) == 0
    assert trials_of(out) == trials_of(tmp_path / "whole")
    after = pq.read_table(out / "evaluations").to_pylist()
    assert len(after) == len({(row["setting"], row["prompt_id"]) for row in after})
    assert json.loads((out / "summary.json").read_text())["cost"]["new"] == len(after) - before


def test_a_search_ends_with_its_report_unless_told_not_to(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    plan = plan_of(tmp_path, "out")
    assert search(plan) == 0
    assert not (tmp_path / "out" / "report").exists()
    assert search(dataclasses.replace(plan, report=True)) == 0
    assert f"report   {tmp_path}/out/report/index.html" in capsys.readouterr().out
    assert "Search of aisp over sigma" in (tmp_path / "out" / "report" / "index.html").read_text()
    monkeypatch.setattr("aisp_ray.report.write.find_searches", lambda outs: 1 / 0)
    assert search(dataclasses.replace(plan, report=True)) == 0, "a page that fails does not fail the search"
    assert "report   not written (division by zero)" in capsys.readouterr().err


def test_held_out_prompts_are_those_after_the_tuning_prompts(tmp_path):
    run(plan_of(tmp_path, "out"))
    rows = pq.read_table(tmp_path / "out" / "evaluations").to_pylist()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tuning"]["preset"]["count"] == 8
    assert summary["heldout"]["preset"]["count"] == 6
    by_setting = {}
    for row in rows:
        by_setting.setdefault(row["setting"], set()).add(row["ordinal"])
    confirmed = [seen for seen in by_setting.values() if max(seen) >= 8]
    assert confirmed
    assert all(seen == set(range(14)) for seen in confirmed)


if __name__ == "__main__":
    sys.exit(run(plan_of(sys.argv[1], sys.argv[2], step_seconds=0.01)))
