"""Whatever fails or ends a run, the rows are those of an undisturbed one. In this process (tests/machines.py)."""

import threading
import time

import pytest

from aisp_ray.pipeline import run
from aisp_ray.report.export.run import export
from aisp_ray.report.export.settings import ExportSettings
from tests.plans import UNENDING, make_plan, rows_of, rows_there, summary, words_of_report

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def settings(prompts, tmp_path):
    return {"out": str(tmp_path / "out"), "path": prompts(12), "run": {"chunk_rows": 4}, "methods": ["aisp"]}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is how it ends
def test_a_prompt_that_always_ends_its_actor_is_one_error_row(settings, undisturbed):
    disturbed = {**settings, "policy": {"actors": (2, 2), "faults": {"00000005": "exit"}}}
    disturbed["run"] = {**settings["run"], "infra_retries": 2}
    assert run(make_plan(disturbed)) == 3
    rows = rows_of(settings["out"])
    wrong = {key: row for key, row in rows.items() if row["status"] == "error"}
    assert [key[0] for key in wrong] == [5]
    assert "3 policy actors ended while they had this prompt" in next(iter(wrong.values()))["error"]
    assert {k: v for k, v in rows.items() if k not in wrong} == {k: v for k, v in undisturbed.items() if k not in wrong}


def test_a_service_that_is_down_for_a_while_is_waited_for(settings, undisturbed, tmp_path, capsys):
    away = tmp_path / "away"
    away.touch()

    def come_back():
        while "its service is away, waiting: ConnectionError" not in capsys.readouterr().err:
            time.sleep(0.1)
        away.unlink()

    threading.Thread(target=come_back, daemon=True).start()
    assert run(make_plan({**settings, "reward": {"away": str(away)}})) == 0
    assert summary(settings)["retries"]["reward"]["service"] > 0
    assert rows_of(settings["out"]) == undisturbed


def test_a_service_that_stays_away_ends_the_run_with_retry_me(settings, undisturbed, tmp_path):
    away = tmp_path / "away"
    away.touch()
    waiting = {**settings, "reward": {"away": str(away)}}
    waiting["run"] = {**settings["run"], "starvation_timeout_seconds": 1.0}
    assert run(make_plan(waiting)) == 75
    away.unlink()
    assert run(make_plan(waiting)) == 0
    assert rows_of(settings["out"]) == undisturbed


def test_a_run_stops_at_its_limit_of_money_and_resumes_with_a_higher_one(settings, undisturbed, capsys):
    price = {"policy": 3600.0, "reward": 0}  # one a second
    limited = {**settings["run"], "price": price, "max_cost": 2.5, "in_flight": 1}  # 12 searches in a row take longer
    slow = {**settings, "policy": {"step_seconds": 0.05}, "run": limited}
    assert run(make_plan(slow)) == 75
    assert "stopped: run.max_cost=2.5 is reached: " in capsys.readouterr().err
    done, facts = summary(settings)["methods"]["aisp"]["rows"], summary(settings)
    assert 2.5 <= facts["cost"] == facts["all_starts"]["cost"] < 30
    assert facts["cost"] <= facts["all_starts"]["seconds"]  # of one actor, at one a second
    assert rows_there(settings) == done < 12
    assert run(make_plan(slow)) == 75  # nothing loads: the money is spent
    assert "in 2 starts; the same command with a higher run.max_cost resumes" in capsys.readouterr().err
    assert run(make_plan({**slow, "policy": {}, "run": {**slow["run"], "max_cost": 100}})) == 0
    assert summary(settings)["all_starts"]["starts"] == 2  # the one that did not begin is none
    assert summary(settings)["all_starts"]["cost"] > facts["cost"]
    assert rows_of(settings["out"]) == undisturbed


def test_a_relative_output_is_refused_inside_a_job(settings, capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run(make_plan({**settings, "out": "outputs/x"})) == 2
    assert "throw-away copy" in capsys.readouterr().err


def test_a_killed_shard_leaves_rows_to_read_and_both_make_every_row_once(settings, undisturbed, start_driver):
    of = {"chunk_rows": 2, "flush_seconds": 0.2, "snapshot_seconds": 0.3, "in_flight": 2, "particles": True}
    clean = undisturbed
    shards = [{**settings, "run": {**of, "shard": f"{number}/2"}} for number in (1, 2)]
    second = start_driver({**shards[1], "policy": UNENDING, "here": True})
    second.wait_for(lambda: rows_there(settings) >= 3)
    assert "run.shard=2/2 still runs, was killed" in words_of_report(settings)
    second.process.kill()
    second.wait()
    there = rows_of(settings["out"])
    assert export(ExportSettings(out=(settings["out"],), format="sft")).rows == {"train": len(there)}
    assert export(ExportSettings(out=(settings["out"],), format="preference")).rows == {"train": len(there)}
    assert run(make_plan(shards[0])) == 0  # with its own prompts, whatever becomes of the second
    assert sorted({key[0] // 2 % 2 for key in rows_of(settings["out"])}) == [0, 1]
    assert summary(settings)["exit_code"] is None
    assert "shard 2/2 has not ended" in words_of_report(settings)
    assert run(make_plan(shards[1])) == 0
    assert summary(settings)["iterations"] <= 4 * (12 - len(there))
    assert rows_of(settings["out"]) == clean
    assert len(rows_of(settings["out"], "particles")) == 12 * 16
    assert (summary(settings)["exit_code"], summary(settings)["methods"]["aisp"]["rows"]) == (0, 12)
