"""Which methods no other one beats in both values."""

import json
import math
from pathlib import Path

from made_rows import made_row, write_output

from aisp_ray.report.tables.frontier import above
from aisp_ray.report.write import make_report

NAN = math.nan


def test_what_another_point_beats_in_both_is_below_the_best_of_those_that_do():
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (0.5, 4.5), (1.5, NAN), (1.0, 5.0)]
    assert [above(points, i) for i in range(len(points))] == [None, None, 1, 0, None, None]


def test_the_file_names_the_frontiers(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    values = {"best_of_n": (1.0, 3.0), "aisp": (2.0, 1.0), "noise_only": (0.9, 2.0)}
    extra = {"aisp": json.dumps({"kl_token_steered": [1.0, 6.0]})}
    rows = [
        made_row(name, i, 0) | {"reward": r, "judge_names": ["gold"], "judge_rewards": [g], "extra": extra.get(name)}
        for name, (r, g) in values.items()
        for i in range(5)
    ]
    out = write_output(tmp_path / "out", rows)
    method = {"best_of_n": {"_target_": "aisp_ray.methods.best_of_n.BestOfN", "select": "best"}, "aisp": {}}
    (out / "manifest.json").write_text(json.dumps({"fingerprint": {"method": method}, "methods": list(values)}))
    lines = Path(make_report(str(out)).to, "frontier.md").read_text().splitlines()
    heads = [cell.strip() for cell in next(line for line in lines if line.startswith("| method")).split("|")[1:-1]]
    found = {}
    for line in lines:
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        if cells and cells[0] in values:
            found[cells[0]] = dict(zip(heads, cells, strict=True))
    assert {name: line["gold frontier"] for name, line in found.items()} == {
        "best_of_n": "frontier",
        "aisp": "frontier",
        "noise_only": "below best_of_n",
    }
    assert found["best_of_n"]["KL, nats"] == f"{math.log(32) - 31 / 32:.2f}"
    assert found["aisp"]["KL, nats"] == "6.00"
    assert (found["noise_only"]["KL, nats"], found["noise_only"]["KL frontier"]) == ("-", "-")
    assert found["aisp"]["KL frontier"] == found["best_of_n"]["KL frontier"] == "frontier"


def test_without_judges_and_divergences_there_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    blank = {"judge_names": [], "judge_rewards": [], "extra": None}
    rows = [made_row(name, i, 0) | blank for name in ("best_of_n", "aisp") for i in range(4)]
    report = make_report(str(write_output(tmp_path / "out", rows)))
    assert not Path(report.to, "frontier.md").exists()
