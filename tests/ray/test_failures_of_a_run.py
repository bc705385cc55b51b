"""Whatever dies, the rows are those of an undisturbed run."""

import signal
import time

import pytest

from aisp_ray.pipeline import run
from tests.machines import in_this_process
from tests.plans import (
    SLOW,
    UNENDING,
    make_plan,
    rows_of,
    rows_there,
    searches_under_way,
    snapshot_of,
    summary,
    words_of_report,
)

pytestmark = pytest.mark.ray


@pytest.fixture
def settings(cluster, prompts, tmp_path):
    return {"out": str(tmp_path / "out"), "path": prompts(12), "run": {"chunk_rows": 4}, "methods": ["aisp"]}


def test_crashes_cuda_faults_and_hangs_cost_no_row(settings, undisturbed, tmp_path):
    policy = {"00000002": "crash-once", "00000004": "cuda-once", "00000006": "bug-once"}
    reward = {"00000003": "crash-once", "00000008": "hang-once"}
    models = {"policy": {"actors": (2, 2), "faults": policy}, "reward": {"faults": reward}}
    disturbed = {**settings, **{name: {**model, "marks": str(tmp_path)} for name, model in models.items()}}
    # one search at a time, so that no fault hides in the loss of another one's actor
    disturbed["run"] = {**settings["run"], "call_timeout_seconds": 3.0, "in_flight": 1}
    assert run(make_plan(disturbed)) == 0
    ended, retries = summary(settings)["ended"], summary(settings)["retries"]
    assert ended["policy"] == {"broken": 1, "lost": 1}
    assert ended["reward"] == {"lost": 2}
    assert retries["policy"]["unknown"] == 1
    assert rows_of(settings["out"]) == undisturbed


def test_a_model_that_does_not_load_ends_the_run_with_its_reason(settings, capsys):
    assert run(make_plan({**settings, "policy": {"load_error": "there is no such checkpoint"}})) == 1
    assert "the policy does not load: ValueError: there is no such checkpoint" in capsys.readouterr().err


def test_what_can_never_be_placed_is_refused_in_one_sentence(settings, capsys):
    assert run(make_plan({**settings, "policy": {"num_gpus": 1.0}})) == 2
    assert "policy: no node can hold one actor, which asks for 1 GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stopped_run_writes_what_it_has_and_resumes_inside_its_searches(
    settings, undisturbed, start_driver, cluster, monkeypatch, number, code
):
    run_settings = {"chunk_rows": 32, "snapshot_seconds": 0.3, "flush_seconds": 600.0, "in_flight": 4}
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
    in_this_process(monkeypatch.setattr)  # what follows is about what was left
    away = {**slow, "policy": {"load_seconds": 3.0}}  # snapshots are taken while it loads
    away["run"] = {**slow["run"], "ready_timeout_seconds": 1.0}
    assert run(make_plan(away)) == 75
    assert searches_under_way(settings) == before  # a start that cannot begin keeps them
    assert run(make_plan({**slow, "policy": {}})) == 0
    assert stopped["iterations"] + summary(settings)["iterations"] == 12 * 4  # only what was being drawn is drawn again
    assert rows_of(settings["out"]) == undisturbed


@pytest.mark.slow
def test_two_runs_on_one_output_never_double_a_row(settings, undisturbed, start_driver, cluster):
    slow = {**settings, "policy": {**SLOW, "slots": 4}, "run": {"chunk_rows": 4, "flush_seconds": 0.1}}
    other = start_driver(slow, cluster.address)
    other.wait_for(lambda: searches_under_way(settings))
    assert run(make_plan(slow)) == 0
    assert other.wait()[0] == 0
    assert rows_of(settings["out"]) == undisturbed
