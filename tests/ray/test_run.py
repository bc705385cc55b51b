"""Runs from prompts to Parquet with models that sleep."""

import contextlib
import io
import json
import re
import shutil
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_prompts
from plans import make_plan, rows_of

from aisp_ray.pipeline import run
from aisp_ray.pipeline.estimate import lines_of
from aisp_ray.results import PARTICLE_SCHEMA, ROW_SCHEMA

pytestmark = pytest.mark.ray

DOCS = Path(__file__).parent.parent.parent / "docs" / "cluster.md"
WHEN_BROKEN = {"ray_aisp_retries_total", "ray_aisp_replicas_ended_total"}  # not there while nothing has failed


@pytest.fixture
def settings(cluster, prompts, tmp_path):
    return {"out": str(tmp_path / "out"), "path": prompts(20), "run": {"chunk_rows": 8}}


@pytest.fixture(scope="module")
def ended(cluster, tmp_path_factory):
    """Settings of a run that has ended, for tests that look at it; `log` is what it said, as JSON."""
    folder, log = tmp_path_factory.mktemp("ended"), io.StringIO()
    settings = {"out": str(folder / "out"), "path": write_prompts(folder / "prompts.jsonl", 26), "limit": 20}
    settings["run"] = {"chunk_rows": 8, "particles": True, "json_logs": True}
    with contextlib.redirect_stderr(log):
        assert run(make_plan({**settings, "judge": True})) == 0
    return {**settings, "log": log.getvalue()}


@pytest.fixture
def again(ended, tmp_path):
    """Settings that go on from a copy of the run that has ended."""
    shutil.copytree(ended["out"], tmp_path / "out")
    return {**ended, "out": str(tmp_path / "out"), "run": {"chunk_rows": 8, "particles": True}}


def test_every_prompt_has_one_row_a_method(ended):
    out, rows = Path(ended["out"]), rows_of(ended["out"])
    assert sorted({key[:2] for key in rows}) == [(i, m) for i in range(20) for m in ("aisp", "best_of_n")]
    files = sorted(path.name for path in (out / "rows").iterdir())
    assert files == [f"part-{m}-{c:08d}.parquet" for m in ("aisp", "best_of_n") for c in range(3)]
    for row in rows.values():
        assert row["status"] == "ok"
        assert row["num_samples"] == 16
        assert row["reward"] == max(row["reward_max"]) == row["reward_best"][-1]
        assert row["judge_names"] == ["judge"]
        assert row["judge_rewards"] == [row["reward"]]  # the judge is the same function of the text
    schema = pq.read_schema(out / "rows" / files[0])
    assert schema.equals(ROW_SCHEMA)
    assert schema.metadata[b"aisp_ray.schema"] == ROW_SCHEMA.metadata[b"aisp_ray.schema"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["first_prompt"]["policy"] == "<user>question 0 of many<reply>"
    assert manifest["engine"] == [{"engine": "sleep", "slots": 16}]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["methods"]["aisp"]["rows"] == 20
    assert summary["data"]["num_prompts"] == 20
    assert summary["generated_tokens"] == sum(row["num_generated_tokens"] for row in rows.values())


def test_after_a_pilot_the_rest_is_foretold_and_every_prompt_has_the_row_it_would_have_had(ended, settings, capsys):
    of = {"chunk_rows": 8, "price": {"policy": 2.0, "reward": 1.0}}
    plan = make_plan({**settings, "policy": {"actors": (1, 3)}, "run": of})
    assert lines_of(plan) == []
    assert run(plan, pilot=8) == 0
    drawn = sorted({key[0] for key in rows_of(settings["out"])})
    assert len(drawn) == 8
    assert drawn != list(range(8))  # at random from all of them
    head, tokens, most, least, *_ = lines_of(plan)
    assert head == f"by 8 prompts of {settings['out']}, for the 12 prompts that are left"
    assert re.fullmatch(r"  tokens [\d,]+ to [\d,]+, reward calls 384", tokens)
    assert re.fullmatch(r"  time \S+ to \S+, cost \S+ to \S+, with at most .* \(3 policy, 1 reward\)", most)
    assert least.endswith("with at least the actors that are asked for (1 policy, 1 reward)")
    assert run(make_plan({**settings, "limit": 20, "run": of})) == 0
    judged = {"judge_names", "judge_rewards"}
    plain = lambda rows: {key: {n: row[n] for n in row if n not in judged} for key, row in rows.items()}  # noqa: E731
    assert plain(rows_of(settings["out"])) == plain(rows_of(ended["out"]))
    assert lines_of(make_plan({**settings, "limit": 20, "run": of})) == ["all 20 prompts are done"]


def test_rows_do_not_depend_on_scheduling(ended, settings):
    other = {**settings, "run": {"chunk_rows": 3, "in_flight": 1}}
    run(make_plan({**other, "policy": {"actors": (2, 2), "slots": 3}, "limit": 6}))
    first, second = unjudged(ended), rows_of(other["out"])
    assert second == {key: row for key, row in first.items() if key[0] < 6}


def unjudged(settings):
    rows = rows_of(settings["out"])
    return {key: {**row, "judge_names": [], "judge_rewards": []} for key, row in rows.items()}


def test_a_second_run_computes_nothing_and_a_longer_one_only_the_rest(again):
    before = rows_of(again["out"])
    assert run(make_plan({**again, "policy": {"load_error": ""}})) == 0
    assert iterations(again) == 0
    run(make_plan({**again, "limit": 26, "policy": {"slots": 8}}))
    assert iterations(again) == 6 * 2 * 4
    rows = rows_of(again["out"])
    assert len(rows) == 52
    assert {key: rows[key] for key in before} == before
    manifest = json.loads(Path(again["out"], "manifest.json").read_text())
    assert [engine["slots"] for engine in manifest["engine"]] == [16, 8]


def test_a_total_budget_is_shared_out_once_and_followed_after_a_restart(settings, tmp_path, capsys):
    settings = {**settings, "total": 200, "kappa": 8, "methods": ["best_of_n"]}
    assert run(make_plan(settings)) == 0
    rows = rows_of(settings["out"])
    samples = [row["num_samples"] for row in rows.values()]
    assert (len(samples), sum(samples), min(samples)) == (20, 200, 4)
    assert len(set(samples)) > 1
    lost = tmp_path / "out" / "rows" / "part-best_of_n-00000001.parquet"
    lost.unlink()
    assert run(make_plan(settings)) == 0
    assert rows_of(settings["out"]) == rows
    assert iterations(settings) == sum(samples[8:16]) // 4  # of the lost rows only
    lost.unlink()
    (tmp_path / "out" / "_state" / "shares.json").unlink()
    assert run(make_plan(settings)) == 2
    assert "shares.json is missing" in capsys.readouterr().err


def iterations(settings):
    with open(f"{settings['out']}/summary.json") as stream:
        return json.load(stream)["iterations"]


def test_another_configuration_is_refused_with_the_difference(again, capsys):
    before = rows_of(again["out"])
    changed = {**again, "limit": 4, "kappa": 2}
    assert run(make_plan(changed)) == 2
    assert "kappa: 4 there, 2 now" in capsys.readouterr().err
    assert rows_of(again["out"]) == before
    assert run(make_plan({**changed, "run": {**again["run"], "on_mismatch": "overwrite"}})) == 0
    assert [len(row["ess"]) for row in rows_of(again["out"]).values()] == [2] * 8


def test_a_bad_row_is_one_error_row_and_can_be_redone(ended, settings):
    faults = {"faults": {"00000003": "data", "00000005": "bug"}}
    assert run(make_plan({**settings, "policy": faults})) == 3
    rows = rows_of(settings["out"])
    assert len(rows) == 40
    wrong = {key[0]: row["error"] for key, row in rows.items() if row["status"] == "error"}
    assert wrong == {3: "this row is at fault", 5: wrong[5]}
    assert "RuntimeError: a bug" in wrong[5]
    assert run(make_plan(settings)) == 3  # they stay
    assert run(make_plan({**settings, "run": {**settings["run"], "retry_errors": True}})) == 0
    assert rows_of(settings["out"]) == unjudged(ended)


def test_a_snapshot_that_cannot_be_written_costs_no_row_and_no_exit_code(settings, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("aisp_ray.pipeline.snapshot.save", full)
    plan = make_plan({**settings, "limit": 8, "run": {**settings["run"], "snapshot_seconds": 0.05}})
    assert run(plan) == 0
    assert "the last snapshot could not be written" in capsys.readouterr().err
    assert len(rows_of(settings["out"])) == 16
    assert iterations(settings) == 64  # the summary is there


def test_an_input_without_a_row_is_refused(settings, tmp_path, capsys):
    (tmp_path / "nothing.jsonl").touch()
    assert run(make_plan({**settings, "path": str(tmp_path / "nothing.jsonl")})) == 2
    assert "nothing.jsonl holds no row" in capsys.readouterr().err


def test_a_smaller_limit_says_what_is_there_and_files_keep_their_number_of_rows(again, capsys):
    before = rows_of(again["out"])
    parts = sorted(path.name for path in Path(again["out"], "rows").iterdir())
    assert run(make_plan({**again, "limit": 8, "run": {**again["run"], "chunk_rows": 2}})) == 0
    said = capsys.readouterr().err
    assert "24 rows of prompts beyond limit=8 are there from an earlier run" in said
    assert "resuming: 16 rows are done" in said
    assert "run.chunk_rows stays 8" in said
    assert rows_of(again["out"]) == before
    assert sorted(path.name for path in Path(again["out"], "rows").iterdir()) == parts


def test_particles_are_a_second_table(ended):
    particles = rows_of(ended["out"], "particles")
    assert len(particles) == 20 * 2 * 16
    best = {}
    for (ordinal, method, *_), particle in particles.items():
        best[ordinal, method] = max(best.get((ordinal, method), -9), particle["reward"])
    assert best == {key[:2]: row["reward"] for key, row in rows_of(ended["out"]).items()}
    table = pq.read_table(f"{ended['out']}/particles/part-aisp-00000000.parquet")
    assert table.schema.equals(PARTICLE_SCHEMA)


def test_everybody_reads_the_rows(ended, tmp_path):
    import datasets
    import pandas
    import ray.data

    folder = f"{ended['out']}/rows"
    assert len(pandas.read_parquet(folder)) == 40
    assert pq.read_table(folder).num_rows == 40
    assert ray.data.read_parquet(folder).count() == 40
    loaded = datasets.load_dataset("parquet", data_dir=folder, cache_dir=str(tmp_path))["train"]
    assert loaded.num_rows == 40
    assert sorted(loaded.column_names) == sorted(ROW_SCHEMA.names)
    assert pa.types.is_list(pq.read_schema(f"{folder}/part-aisp-00000000.parquet").field("ess").type)


def test_prometheus_sees_the_documented_names(settings):
    import ray

    assert run(make_plan({**settings, "limit": 4, "run": {"price": {"policy": 1.0, "reward": 1.0}}})) == 0
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
    documented = set(re.findall(r"`(ray_aisp_\w+)`", DOCS.read_text(encoding="utf-8")))
    deadline, missing = time.monotonic() + 90, documented
    while missing and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        missing = {name for name in documented if not re.search(rf"^{name}(_bucket)?{{", text, re.M)} - WHEN_BROKEN
    assert not missing
    assert re.search(r'ray_aisp_rows_total{[^}]*method="aisp"[^}]*status="ok"[^}]*} \d+', text)


def test_json_logs_name_prompt_and_iteration(ended):
    records = [json.loads(line) for line in ended["log"].splitlines() if line.startswith("{")]
    told = {(r["prompt_id"], r["method"], r["iteration"]) for r in records if r["message"] == "iteration told"}
    assert told == {(f"fake/train/{i:08d}", m, k) for i in range(20) for m in ("aisp", "best_of_n") for k in range(4)}


def test_an_evaluation_from_python_runs_beside_an_event_loop(settings, monkeypatch):
    import asyncio

    from aisp_ray import evaluate

    monkeypatch.setattr("aisp_ray.commands.eval.planned", lambda composed: make_plan({**settings, "limit": 2}))

    async def notebook():
        return evaluate(report=False)

    done = asyncio.run(notebook())
    assert done.to_arrow()["status"].to_pylist() == ["ok"] * 4
    assert "vs best_of_n" in done.table()
