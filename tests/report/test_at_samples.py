"""Best rewards after parts of the samples, recomputed from the rows; and reports of some of the methods."""

from pathlib import Path

import numpy as np
import pytest
from made_rows import made_row, write_output

from aisp_ray.report.figures import COLOURS, style
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


def test_the_files_have_the_table(out, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.DRAWINGS", ())
    report = make_report(out)
    text = Path(report.to, "budgets.md").read_text()
    assert "| method | 8 samples | vs best_of_n | 16 samples | vs best_of_n | 32 samples | vs best_of_n |" in text
    assert next(line for line in text.splitlines() if line.startswith("| big_rounds")).startswith(
        "| big_rounds | - | -"
    )
    assert "At a part of the samples" in Path(report.page).read_text()


def test_a_report_of_some_methods_has_no_others(out):
    kept = only(read_rows(out), ["aisp", "best_of_n"])
    assert set(kept["method"].to_pylist()) == {"aisp", "best_of_n"}
    with pytest.raises(ValueError, match="no rows of 'asp'; there are aisp, best_of_n, big_rounds"):
        only(read_rows(out), ["asp"])


def test_no_two_of_many_methods_look_the_same():
    labels = [f"m{i}" for i in range(2 * len(COLOURS))]
    looks = {(style(labels, label)["color"], style(labels, label)["linestyle"]) for label in labels}
    assert len(looks) == len(labels)
