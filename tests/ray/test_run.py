"""Runs from prompts to Parquet on a cluster, with models that sleep. More of them: tests/pipeline."""

import contextlib
import io
import json
import re
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aisp_ray.pipeline import run
from aisp_ray.results import PARTICLE_SCHEMA, ROW_SCHEMA
from tests.machines import in_this_process
from tests.plans import make_plan, rows_of, summary, write_prompts

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
    settings["run"] = {
        "chunk_rows": 8,
        "particles": True,
        "json_logs": True,
        "price": {"policy": 1.0, "reward": 1.0, "judges": 1.0},
    }
    with contextlib.redirect_stderr(log):
        assert run(make_plan({**settings, "judge": True})) == 0
    return {**settings, "log": log.getvalue()}


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
    told = summary(ended)
    assert told["methods"]["aisp"]["rows"] == 20
    assert told["data"]["num_prompts"] == 20
    assert told["generated_tokens"] == sum(row["num_generated_tokens"] for row in rows.values())


def test_rows_are_those_of_a_run_in_this_process(ended, tmp_path, monkeypatch):
    """Which is what tests/pipeline looks at."""
    in_this_process(monkeypatch.setattr)
    assert run(make_plan({**ended, "out": str(tmp_path / "out"), "judge": True})) == 0
    for folder in ("rows", "particles"):
        assert rows_of(tmp_path / "out", folder) == rows_of(ended["out"], folder)
    assert summary({"out": tmp_path / "out"})["methods"] == summary(ended)["methods"]


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


@pytest.mark.usefixtures("ended")
def test_prometheus_sees_the_documented_names():
    import ray

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
