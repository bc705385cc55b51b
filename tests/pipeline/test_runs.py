"""Runs from prompts to Parquet and the commands after them, in this process (tests/machines.py)."""

import json
import re
import shutil
from pathlib import Path

import pytest

from aisp_ray.pipeline import run
from aisp_ray.pipeline.estimate import lines_of
from tests.machines import in_this_process
from tests.plans import make_plan, rows_of, summary, unjudged, write_prompts

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def settings(prompts, tmp_path):
    return {"out": str(tmp_path / "out"), "path": prompts(20), "run": {"chunk_rows": 8}}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Settings of a run that has ended, for tests that look at it."""
    folder = tmp_path_factory.mktemp("ended")
    settings = {"out": str(folder / "out"), "path": write_prompts(folder / "prompts.jsonl", 26), "limit": 20}
    settings["run"] = {"chunk_rows": 8, "particles": True}
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch.setattr)
        assert run(make_plan({**settings, "judge": True})) == 0
    return settings


@pytest.fixture
def again(ended, tmp_path):
    """Settings that go on from a copy of the run that has ended."""
    shutil.copytree(ended["out"], tmp_path / "out")
    return {**ended, "out": str(tmp_path / "out")}


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


def test_a_second_run_computes_nothing_and_a_longer_one_only_the_rest(again):
    before = rows_of(again["out"])
    assert run(make_plan({**again, "policy": {"load_error": ""}})) == 0
    assert summary(again)["iterations"] == 0
    run(make_plan({**again, "limit": 26, "policy": {"slots": 8}}))
    assert summary(again)["iterations"] == 6 * 2 * 4
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
    assert summary(settings)["iterations"] == sum(samples[8:16]) // 4  # of the lost rows only
    lost.unlink()
    (tmp_path / "out" / "_state" / "shares.json").unlink()
    assert run(make_plan(settings)) == 2
    assert "shares.json is missing" in capsys.readouterr().err


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
    assert summary(settings)["iterations"] == 64  # the summary is there


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
