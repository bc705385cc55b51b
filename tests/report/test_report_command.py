"""The command line of reports."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from made_rows import made_row, write_output

from aisp_ray import config
from aisp_ray.commands.report import main
from aisp_ray.report.trackers import curve_values, last_values
from aisp_ray.report.write import make_report


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing takes most of a report's time; these tests are about the rest."""
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())


@pytest.fixture
def out(tmp_path) -> str:
    rows = [made_row(method, i, 0) for method in ("best_of_n", "aisp") for i in range(6)]
    return str(write_output(tmp_path / "out", rows, {"method": {"aisp": {"sigma": 0.5}}}))


def test_a_report_is_written_and_its_table_shown(out, capsys):
    assert main([f"out={out}", "baseline=aisp", "metrics=[distinct_2]"]) == 0
    shown = capsys.readouterr().out
    assert "vs aisp" in shown
    assert "distinct_2" in shown
    assert f"{out}/report/index.html" in shown


def test_a_place_that_cannot_be_written_is_one_sentence(out, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([f"out={out}", f"to={tmp_path}/file/report"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "file" in line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "out is empty"),
        (["ot=x"], 'Did you mean "out"?'),
        (["--out=x"], "without dashes"),
        (["out=x", "metrics=[diversit]"], 'Did you mean "diversity"?'),
        (["out=x", "metrics=[words]", "metric.diversity.plus_one=true"], "not among the chosen ones"),
        (["out=x", "metrics=[diversity]", "metric.diversity.plus=true"], 'Did you mean "plus_one"?'),
        (["out=x", "seed=a"], "a whole number"),
        (["out=nowhere/at/all"], "no rows in nowhere/at/all/rows"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(words, sentence, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.strip().splitlines()) == 1


def test_help_names_every_key_and_choice(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("  out ", "best_of_n", "coherence", "diversity_plus_one", "mlflow", "wandb", "(conf/reward)"):
        assert word in shown


@pytest.mark.parametrize("group", ["metric", "tracker"])
def test_every_choice_is_described_and_builds(group):
    found = config.choices(group)
    assert found
    for name, text in found.items():
        assert text, name
        config.build(config.read_choice(group, name), f"{group}.{name}")


def test_a_tracker_that_is_not_installed_is_said(out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main([f"out={out}", "trackers=mlflow"]) == 2
    assert "pip install mlflow" in capsys.readouterr().err


def test_mlflow_gets_settings_values_curves_and_files(out, monkeypatch):
    told: dict[str, list] = {}

    class Run:
        def __enter__(self):
            return self

        def __exit__(self, *ends):
            told.setdefault("ended", []).append(ends)

    def record(name: str):
        return lambda *args, **kwargs: told.setdefault(name, []).append((args, kwargs)) or Run()

    names = ["set_tracking_uri", "set_experiment", "start_run"]
    names += ["log_params", "log_metrics", "log_metric", "log_artifacts"]
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**{name: record(name) for name in names}))
    assert main([f"out={out}", "trackers=mlflow", "tracker.mlflow.uri=file:///x", "tracker.mlflow.experiment=e"]) == 0
    report = make_report(out)
    assert told["set_tracking_uri"][0][0] == ("file:///x",)
    assert told["set_experiment"][0][0] == ("e",)
    assert told["log_params"][0][0][0]["method.aisp.sigma"] == "0.5"
    assert told["log_metrics"][0][0][0] == dict(last_values(report))
    assert told["log_metrics"][0][0][0]["made/aisp/reward"] == report.records[1].reward.mean
    assert len(told["log_metric"]) == len(list(curve_values(report)))
    assert told["log_artifacts"][0][0] == (f"{out}/report",)
