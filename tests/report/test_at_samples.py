"""Best rewards after parts of the samples, recomputed from the rows; and reports of some of the methods."""

from pathlib import Path

import numpy as np
import pytest
from made_rows import made_row, write_output

from aisp_ray.report.figures.draw import COLOURS, style
from aisp_ray.report.measure import sections
from aisp_ray.report.rows import only, read_rows
from aisp_ray.report.write import make_report

METHODS = ("aisp", "best_of_n", "big_rounds")


@pytest.fixture(scope="module")
def rows():
    made = [made_row(method, i, seed) for method in METHODS[:2] for i in range(9) for seed in (0, 1)]
    made += [made_row("big_rounds", i, seed, kappa=2, n=16) for i in range(9) for seed in (0, 1)]
    made[0]["num_samples_seen"], made[0]["reward_best"] = [4, 8], made[0]["reward_best"][:2]  # ended early
    return made


@pytest.fixture(scope="module")
def out(rows, tmp_path_factory):
    return str(write_output(tmp_path_factory.mktemp("budgets") / "out", rows))


def best_after(rows, method, samples):
    """[prompts]: mean over seeds of the highest reward among at most so many samples."""
    found = {}
    for row in rows:
        if row["method"] == method:
            fits = [b for b, s in zip(row["reward_best"], row["num_samples_seen"], strict=True) if s <= samples]
            found.setdefault(row["ordinal"], []).append(fits[-1] if fits else np.nan)
    return np.array([np.mean(found[i]) for i in sorted(found)])


@pytest.mark.parametrize("method", METHODS)
def test_every_number_is_that_of_the_rows(out, rows, method):
    lines = sections(read_rows(out), {})[0].budgets
    assert next(iter(lines)) == "best_of_n"
    for at, samples in zip(lines[method], (8, 16, 32), strict=True):
        assert at.samples == samples
        mine, base = best_after(rows, method, samples), best_after(rows, "best_of_n", samples)
        assert at.reward.mean == pytest.approx(np.mean(mine), nan_ok=True)
        if method == "best_of_n":
            assert np.isnan(at.gain.mean)
        else:
            assert at.gain.mean == pytest.approx(np.mean(mine - base), nan_ok=True)


def test_what_a_search_had_found_before_it_failed_is_in_no_curve_and_no_budget(rows, tmp_path):
    kept = {"status": "error", "error": "the policy lost it", "response": None, "reward": None}
    made = [made_row(method, i, 0) for method in METHODS[:2] for i in range(5)]
    made += [made_row(method, 5, 0) | kept | {"reward_best": [-99.0] * 8} for method in METHODS[:2]]
    (section,) = sections(read_rows(str(write_output(tmp_path / "out", made))), {})
    for record in section.records:
        last = section.budgets[record.method][-1].reward
        curves = {name: found[record.method] for name, found in section.curves.items() if record.method in found}
        assert (last.count, last.mean) == (record.reward.count, pytest.approx(record.reward.mean))
        assert all(curve.values[-1].count <= 5 for curve in curves.values() if curve.values)
        assert curves["reward_best"].values[-1].mean == pytest.approx(record.reward.mean)
    assert section.curves["gain"]["aisp"].values[-1].count == 5


def test_the_baseline_reaches_its_own_final_mean(tmp_path):
    finals = (0.1, 0.2, 0.3, 0.7, 1e16, -1e16, 0.3)  # whose sum depends on how one sums
    made = [
        made_row("best_of_n", i, 0, kappa=2) | {"reward_best": [-2e16, x], "reward": x} for i, x in enumerate(finals)
    ]
    (section,) = sections(read_rows(str(write_output(tmp_path / "out", made))), {})
    assert section.costs["best_of_n"].samples_to_baseline == 8


def test_the_files_have_the_table(out, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    report = make_report(out)
    text = Path(report.to, "budgets.md").read_text()
    assert "| method | 8 samples | vs best_of_n | 16 samples | vs best_of_n | 32 samples | vs best_of_n |" in text
    assert next(line for line in text.splitlines() if line.startswith("| big_rounds")).startswith(
        "| big_rounds | - | -"
    )
    assert "Smaller budgets" in Path(report.page).read_text()


def test_a_report_of_some_methods_has_no_others(out):
    kept = only(read_rows(out), ["aisp", "best_of_n"])
    assert set(kept["method"].to_pylist()) == {"aisp", "best_of_n"}
    with pytest.raises(ValueError, match="no rows of 'asp'; there are aisp, best_of_n, big_rounds"):
        only(read_rows(out), ["asp"])


def test_no_two_of_many_methods_look_the_same():
    labels = [f"m{i}" for i in range(2 * len(COLOURS))]
    looks = {(style(labels, label)["color"], style(labels, label)["linestyle"]) for label in labels}
    assert len(looks) == len(labels)
