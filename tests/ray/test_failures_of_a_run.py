"""Whatever dies, the rows are those of an undisturbed run."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import write_prompts
from plans import make_plan, rows_of

from aisp_ray.pipeline import run
from aisp_ray.report.export.run import export
from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.write import read_report, report_text

pytestmark = pytest.mark.ray


@pytest.fixture
def settings(cluster, prompts, tmp_path):
    return {"out": str(tmp_path / "out"), "path": prompts(12), "run": {"chunk_rows": 4}, "methods": ["aisp"]}


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """A function that returns the rows that a run of `settings` without faults gives."""
    folder, rows = tmp_path_factory.mktemp("clean"), {}

    def get():
        if not rows:
            path = write_prompts(folder / "prompts.jsonl", 12)
            clean = {"out": str(folder / "out"), "path": path, "run": {"chunk_rows": 4}, "methods": ["aisp"]}
            assert run(make_plan(clean)) == 0
            rows.update(rows_of(clean["out"]))
        return rows

    return get


def summary(settings):
    with open(f"{settings['out']}/summary.json") as stream:
        return json.load(stream)


def faults(tmp_path, **of):
    return {"faults": of, "marks": str(tmp_path)}


def test_crashes_cuda_faults_and_hangs_cost_no_row(settings, undisturbed, tmp_path):
    policy = faults(tmp_path, **{"00000002": "crash-once", "00000004": "cuda-once", "00000006": "bug-once"})
    reward = faults(tmp_path, **{"00000003": "crash-once", "00000008": "hang-once"})
    disturbed = {**settings, "policy": {"actors": (2, 2), **policy}, "reward": {"actors": (2, 2), **reward}}
    # one search at a time, so that no fault hides in the loss of another one's actor
    disturbed["run"] = {**settings["run"], "call_timeout_seconds": 3.0, "in_flight": 1}
    assert run(make_plan(disturbed)) == 0
    ended, retries = summary(settings)["ended"], summary(settings)["retries"]
    assert ended["policy"] == {"broken": 1, "lost": 1}
    assert ended["reward"] == {"lost": 2}
    assert retries["policy"]["unknown"] == 1
    assert rows_of(settings["out"]) == undisturbed()


def test_a_prompt_that_always_ends_its_actor_is_one_error_row(settings, undisturbed, tmp_path):
    disturbed = {**settings, "policy": {"actors": (2, 2), **faults(tmp_path, **{"00000005": "crash"})}}
    disturbed["run"] = {**settings["run"], "infra_retries": 2}
    assert run(make_plan(disturbed)) == 3
    rows = rows_of(settings["out"])
    wrong = {key: row for key, row in rows.items() if row["status"] == "error"}
    assert [key[0] for key in wrong] == [5]
    assert "3 policy actors ended while they had this prompt" in next(iter(wrong.values()))["error"]
    assert {k: v for k, v in rows.items() if k not in wrong} == {
        k: v for k, v in undisturbed().items() if k not in wrong
    }


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
    assert rows_of(settings["out"]) == undisturbed()


def test_a_model_that_does_not_load_ends_the_run_with_its_reason(settings, capsys):
    assert run(make_plan({**settings, "policy": {"load_error": "there is no such checkpoint"}})) == 1
    assert "the policy does not load: ValueError: there is no such checkpoint" in capsys.readouterr().err


def test_a_service_that_stays_away_ends_the_run_with_retry_me(settings, undisturbed, tmp_path):
    away = tmp_path / "away"
    away.touch()
    waiting = {**settings, "reward": {"away": str(away)}}
    waiting["run"] = {**settings["run"], "starvation_timeout_seconds": 1.0}
    assert run(make_plan(waiting)) == 75
    away.unlink()
    assert run(make_plan(waiting)) == 0
    assert rows_of(settings["out"]) == undisturbed()


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
    assert rows_of(settings["out"]) == undisturbed()


def test_what_can_never_be_placed_is_refused_in_one_sentence(settings, capsys):
    assert run(make_plan({**settings, "policy": {"num_gpus": 1.0}})) == 2
    assert "policy: no node can hold one actor, which asks for 1 GPU" in capsys.readouterr().err


def test_a_relative_output_is_refused_inside_a_job(settings, capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run(make_plan({**settings, "out": "outputs/x"})) == 2
    assert "throw-away copy" in capsys.readouterr().err


SLOW = {"step_seconds": 0.02}  # so that a run is still under way when it is killed
UNENDING = {**SLOW, "faults": {"00000011": "hang"}}  # however late that is


def snapshot_of(settings):
    try:
        with open(f"{settings['out']}/_state/inflight.json") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return {"searches": [], "rows": []}


def searches_under_way(settings):
    return [progress["state"]["iteration"] for _, _, progress in snapshot_of(settings)["searches"]]


def rows_there(settings):
    return len(rows_of(settings["out"])) if list(Path(settings["out"], "rows").glob("*.parquet")) else 0


def words_of_report(settings):
    return " ".join(report_text(read_report(settings["out"])).split())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stopped_run_writes_what_it_has_and_resumes_inside_its_searches(
    settings, undisturbed, start_driver, cluster, number, code
):
    run_settings = {"chunk_rows": 32, "snapshot_seconds": 0.3, "flush_seconds": 600.0, "in_flight": 2}
    slow = {**settings, "policy": UNENDING, "run": run_settings}
    driver = start_driver(slow, cluster.address)
    driver.wait_for(lambda: len(snapshot_of(settings)["rows"]) >= 3 and searches_under_way(settings))
    assert rows_there(settings) == 0
    sent = time.time()
    driver.process.send_signal(number)
    assert driver.wait()[0] == code
    snapshot = snapshot_of(settings)
    assert snapshot["ended"]
    assert snapshot["time"] - sent < 60  # far below flush_seconds and the hang
    stopped = summary(settings)
    assert stopped["exit_code"] == code
    assert rows_there(settings) == stopped["methods"]["aisp"]["rows"] >= 3
    assert f"the run has not ended (exit code {code}); the same command resumes it" in words_of_report(settings)
    before = searches_under_way(settings)
    assert before
    away = {**slow, "policy": {"load_seconds": 3.0}}  # snapshots are taken while it loads
    away["run"] = {**slow["run"], "ready_timeout_seconds": 1.0}
    assert run(make_plan(away)) == 75
    assert searches_under_way(settings) == before  # a start that cannot begin keeps them
    assert run(make_plan({**slow, "policy": {}})) == 0
    assert stopped["iterations"] + summary(settings)["iterations"] == 12 * 4  # only what was being drawn is drawn again
    assert rows_of(settings["out"]) == undisturbed()


def test_a_killed_shard_leaves_rows_to_read_and_both_make_every_row_once(settings, undisturbed, start_driver, cluster):
    of = {"chunk_rows": 2, "flush_seconds": 0.2, "snapshot_seconds": 0.3, "in_flight": 2, "particles": True}
    clean = undisturbed()
    shards = [{**settings, "run": {**of, "shard": f"{number}/2"}} for number in (1, 2)]
    second = start_driver({**shards[1], "policy": UNENDING}, cluster.address)
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


@pytest.mark.slow
def test_two_runs_on_one_output_never_double_a_row(settings, undisturbed, start_driver, cluster):
    slow = {**settings, "policy": {**SLOW, "slots": 4}, "run": {"chunk_rows": 4, "flush_seconds": 0.1}}
    other = start_driver(slow, cluster.address)
    other.wait_for(lambda: searches_under_way(settings))
    assert run(make_plan(slow)) == 0
    assert other.wait()[0] == 0
    assert rows_of(settings["out"]) == undisturbed()
