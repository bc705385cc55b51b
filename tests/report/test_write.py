"""The files of a report, on whole, partial and several outputs."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from made_rows import made_error, made_row, write_output

from aisp_ray.report.figures.draw import blank
from aisp_ray.report.figures.evaluation import DRAWINGS, best_reward, held_out, paired_scatter, sensitivity
from aisp_ray.report.measure import sections
from aisp_ray.report.page.payload import payload
from aisp_ray.report.page.render import render
from aisp_ray.report.rows import read_labelled
from aisp_ray.report.series import gain_curves, trace_matrix
from aisp_ray.report.summary import Grid
from aisp_ray.report.tables.cells import with_intervals
from aisp_ray.report.write import make_report

METHODS = ("best_of_n", "noise_only", "aisp")


def measured(*outs: Path):
    return sections(*read_labelled([str(out) for out in outs]))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    rows = [made_row(method, ordinal, 0) for method in METHODS for ordinal in range(12)]
    fingerprint = {"method": {method: {"n": 4} for method in METHODS}, "seed": 0}
    made = write_output(tmp_path_factory.mktemp("report") / "out", [*rows, made_error("aisp", 12, 0)])
    manifest = {"fingerprint": fingerprint, "methods": list(METHODS), "versions": {"torch": "2.x"}}
    (made / "manifest.json").write_text(json.dumps(manifest))
    (made / "summary.json").write_text(json.dumps({"warnings": ["the disk was <full>"]}))
    return made


@pytest.fixture(scope="module")
def report(out):
    return make_report(str(out))


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of a report's time; these tests are about the rest."""
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())


def unpack(page: str) -> dict:
    data = re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(gzip.decompress(base64.b64decode(data)))


def test_everything_that_is_promised_is_there(report):
    names = {str(path.relative_to(report.to)) for path in Path(report.to).rglob("*") if path.is_file()}
    figures = ("best_reward", "gain", "iteration_mean", "iteration_highest", "ess", "control_norm", "kl", "reward_kl")
    figures += ("paired_aisp", "held_out_gold", "transfer_gold")
    assert names >= {"index.html", "table.md", "table.tex", "table.csv", "summary.json"}
    assert names >= {f"figures/{name}.{kind}" for name in figures for kind in ("svg", "png")}
    assert not any("sensitivity" in name for name in names), "one setting has no sensitivity"


def test_the_page_holds_rows_configuration_and_warnings_and_asks_for_nothing(report):
    page = Path(report.page).read_text()
    assert "the disk was &lt;full&gt;" in page
    assert "1 of 13 rows are errors; the first: the prompt is empty" in page
    assert "torch: 2.x" in page
    assert "currentColor" in page
    for record, cell in zip(report.records, with_intervals([r.reward for r in report.records]), strict=True):
        assert re.search(rf"{record.method}</td><td>[^<]*</td><td>{cell}</td>", page)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', re.sub(r'xmlns[^ ]*="[^"]*"', "", page))
    assert re.search(r'<link[^>]+href="http|@import|url\(http', page) is None


def test_the_browser_s_data_are_the_rows(report, out):
    data = unpack(Path(report.page).read_text())
    assert data["labels"] == ["best_of_n", "noise_only", "aisp"]
    assert data["baselines"] == [0]
    assert len(data["prompts"]) == 13
    entry = data["prompts"][3]
    source = made_row("aisp", 3, 0)
    row = next(row for row in entry["rows"] if row["label"] == 2)
    assert row["response"] == source["response"]
    assert row["reward"] == pytest.approx(source["reward"], rel=1e-4)
    assert row["judges"] == [pytest.approx(source["judge_rewards"][0], rel=1e-4), None]
    assert row["best"] == pytest.approx(source["reward_best"], rel=1e-4)
    assert data["prompts"][12]["rows"][0]["error"] == "the prompt is empty"


def test_the_same_rows_give_the_same_files(out, tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", DRAWINGS[:1])
    first, second = (Path(make_report(str(out), str(tmp_path / name)).page).parent for name in ("a", "b"))
    names = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(names) == 11
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_job_that_has_just_begun_has_a_report(tmp_path, no_figures):
    out = write_output(tmp_path / "o", [made_row("aisp", 0, 0, kappa=1), made_error("best_of_n", 0, 0)])
    report = make_report(str(out))
    assert report.records[0].num_errors == 1
    assert Path(report.page).stat().st_size > 10_000


def test_only_errors_still_make_a_page(tmp_path):
    out = write_output(tmp_path / "o", [made_error(method, i, 0) for method in METHODS for i in range(3)])
    report = make_report(str(out))
    assert report.records[0].num_prompts == 0
    assert "<svg" not in Path(report.page).read_text().split("<script")[0]


def test_settings_that_were_swept_get_a_figure(tmp_path):
    outs = []
    for sigma in (0.3, 0.5, 9.0):
        made = [made_row(method, i, 0) for method in ("best_of_n", "aisp") for i in range(6)]
        config = {"method": {"aisp": {"sigma": sigma, "n": 4}, "best_of_n": {}}}
        outs.append(write_output(tmp_path / f"s{sigma}", made, config))
    (section,) = measured(*outs)
    assert section.labels == ["best_of_n", *(f"aisp sigma={s}" for s in (0.3, 0.5, 9))]
    (panel,) = sensitivity(section)
    _, axis = blank()
    panel.draw(axis)
    assert (axis.get_xlabel(), axis.get_xscale()) == ("aisp.sigma", "log")
    assert [0.3, 0.5, 9.0] in [list(line.get_xdata()) for line in axis.lines]


def test_two_datasets_have_their_own_sections_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", [paired_scatter])
    rows = [made_row(method, i, 0) for method in METHODS for i in range(4)]
    other = [row | {"dataset": "other", "prompt_id": f"other/test/{row['ordinal']}"} for row in rows]
    report = make_report(str(write_output(tmp_path / "o", rows + other)))
    assert [section.dataset for section in report.sections] == ["made", "other"]
    assert {path.name for path in (Path(report.to) / "figures").glob("*paired_aisp.svg")} == {
        "0_paired_aisp.svg",
        "1_paired_aisp.svg",
    }
    data = unpack(Path(report.page).read_text())
    assert data["labels"] == [f"{method} ({name})" for name in ("made", "other") for method in METHODS]
    assert data["baselines"] == [0, 3]


def test_without_matplotlib_there_is_a_page_without_figures(out, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Path(make_report(str(out), str(tmp_path / "plain")).page).read_text()
    assert "matplotlib is not installed" in page
    assert not (tmp_path / "plain" / "figures").exists()


def test_texts_of_a_run_are_shown_and_never_run(tmp_path, monkeypatch):
    drawn = (best_reward, paired_scatter, held_out, sensitivity)  # texts in a legend, a title, at an axis
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", drawn)
    evil = "</script><img src=x onerror=alert(1)> $\\frac{$ & <b>"
    made = [(method, i) for method in ("best_of_n", "aisp") for i in range(4)]
    rows = [made_row(method, i, 0) | {"dataset": evil, "prompt": f"{evil}{i}", "response": evil} for method, i in made]
    outs = [write_output(tmp_path / str(k), rows, {"method": {"aisp": {"x": x}}}) for k, x in enumerate((evil, "y"))]
    report = make_report([str(out) for out in outs], str(tmp_path / "to"))
    assert f"aisp x={evil}" in [record.method for record in report.records]
    page = Path(report.page).read_text(encoding="utf-8")
    assert page.count("</script>") == 2  # the page's own
    assert "<img" not in page


def test_unequal_budgets_are_said(tmp_path, no_figures):
    rows = [made_row("best_of_n", i, 0) for i in range(4)] + [made_row("aisp", i, 0, kappa=4) for i in range(4)]
    report = make_report(str(write_output(tmp_path / "o", rows)))
    assert any("not a comparison at equal budget" in text and "aisp 16" in text for text in report.notices)


def test_methods_whose_responses_were_cut_share_one_notice(tmp_path, no_figures):
    rows = [made_row(method, i, 0) for method in ("best_of_n", "aisp", "noise_only") for i in range(5)]
    for row in rows:
        if row["ordinal"] < {"best_of_n": 5, "aisp": 2, "noise_only": 1}[row["method"]]:
            row["finish_reason"] = "length"
    (found,) = [text for text in make_report(str(write_output(tmp_path / "out", rows))).notices if "cut by" in text]
    assert found.endswith("responses cut by the length limit: 100% of best_of_n, 40% of aisp")


def test_a_run_that_goes_on_or_was_killed_is_said_though_nobody_wrote_a_summary(tmp_path, no_figures):
    out = write_output(tmp_path / "o", [made_row("aisp", 0, 0)])
    runs = {"runs": [{"run_id": "first"}, {"run_id": "second"}]}
    (out / "manifest.json").write_text(json.dumps(runs))
    assert any("was killed and the same command resumes it" in text for text in make_report(str(out)).notices)
    (out / "summary.json").write_text(json.dumps({"exit_code": 0, "run_id": "first"}))  # of the one before
    assert any("has not ended" in text for text in make_report(str(out)).notices)
    (out / "summary.json").write_text(json.dumps({"exit_code": 0, "run_id": "second"}))
    assert not any("has not ended" in text for text in make_report(str(out)).notices)


def test_runs_that_stopped_or_mixed_configurations_are_said(tmp_path, no_figures):
    out = write_output(tmp_path / "o", [made_row("aisp", 0, 0)])
    (out / "summary.json").write_text(json.dumps({"exit_code": 143}))
    (out / "manifest.json").write_text(json.dumps({"ignored_differences": ["seed: 0 there, 1 now"]}))
    told = "\n".join(make_report(str(out)).notices)
    assert "has not ended (exit code 143)" in told
    assert "mixed" in told
    assert "seed: 0 there, 1 now" in told


def test_the_best_so_far_goes_on_after_an_early_end_and_other_traces_stop(tmp_path):
    rows = [made_row("aisp", 0, 0, kappa=3), made_row("aisp", 1, 0, kappa=5)]
    (section,) = measured(write_output(tmp_path / "o", rows))
    grid = Grid(section.columns)
    best = trace_matrix(grid, "aisp", section.columns["reward_best"], carried=True)
    mean = trace_matrix(grid, "aisp", section.columns["reward_mean"], carried=False)
    assert best[0, 3:].tolist() == [rows[0]["reward_best"][-1]] * 2
    assert [value.count for value in section.curves["reward_mean"]["aisp"].values] == [2, 2, 2, 1, 1]
    assert mean[1].tolist() == pytest.approx(rows[1]["reward_mean"])


def test_gains_compare_after_as_many_samples(tmp_path):
    coarse = [made_row("best_of_n", i, 0, kappa=2, n=8) for i in range(5)]
    fine = [made_row("aisp", i, 0, kappa=4, n=4) for i in range(5)]
    (section,) = measured(write_output(tmp_path / "o", coarse + fine))
    curve = gain_curves(section.columns, Grid(section.columns), "best_of_n")["aisp"]
    assert curve.samples == (4, 8, 12, 16)
    assert curve.values[0].count == 0, "the baseline had drawn nothing that fits"
    for k, at in ((1, 0), (2, 0), (3, 1)):
        plain = [f["reward_best"][k] - c["reward_best"][at] for f, c in zip(fine, coarse, strict=True)]
        assert curve.values[k].mean == pytest.approx(sum(plain) / 5)


def test_a_page_of_too_many_prompts_says_so(out, no_figures, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.page.payload.MAX_PROMPTS", 5)
    assert len(payload(measured(out))["prompts"]) == 5
    page = Path(make_report(str(out), str(out / "short")).page).read_text()
    assert "The first 5 of 13 prompts are here" in page


def test_the_command_to_repeat_a_run_is_one_line_for_a_shell(tmp_path, no_figures):
    out = write_output(tmp_path / "o", [made_row("aisp", 0, 0)])
    words = ["jobs/eval.py", "policy.stop_strings=[User:, <b>]", "limit=6"]
    (out / "manifest.json").write_text(json.dumps({"runs": [{"command": ["old"]}, {"command": words}]}))
    page = Path(make_report(str(out)).page).read_text()
    assert "python jobs/eval.py &#39;policy.stop_strings=[User:, &lt;b&gt;]&#39; limit=6</pre>" in page
    assert "1 prompt, 1 method<" in page


def test_no_secret_of_an_old_manifest_reaches_the_report(out, tmp_path, no_figures):
    place = tmp_path / "run"
    shutil.copytree(out, place, ignore=shutil.ignore_patterns("report"))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["config"] = {"data": {"path": "s3://KEY:SE/CR@bucket/x"}, "reward": {"extra": {"api_key": "topsecret"}}}
    manifest["runs"] = [{"run_id": "a", "command": ["jobs/eval.py", "out=https://me:topsecret@host/x"]}]
    (place / "manifest.json").write_text(json.dumps(manifest))
    report = make_report(str(place))
    texts = [path.read_text(errors="replace") for path in Path(report.to).rglob("*") if path.is_file()]
    assert "s3://***@bucket/x" in "".join(texts)
    assert not any("SE/CR" in text or "topsecret" in text for text in texts)


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "\x1b[31mred", "\x9b2J", "a\rb"])
def test_no_control_character_reaches_the_page(text):
    page = render([], {}, {}, [f"the first: {text}"], {})
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(page)
    assert "the first: " in page
