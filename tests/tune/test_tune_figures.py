"""The picture of a search."""

import pyarrow.parquet as pq
import pytest
from tune_world import make, run

pytest.importorskip("matplotlib")

from aisp_ray.tune.figures import draw_trials, grid_keys


def test_a_search_draws_a_panel_a_key(tmp_path):
    run(make(tmp_path, "trials=6", "limit=8"), draw=True)
    figure = draw_trials(pq.read_table(tmp_path / "trials.parquet"))
    (axis,) = figure.axes
    assert axis.get_xlabel() == "temperature"
    assert axis.get_ylabel() == "reward"
    assert (tmp_path / "trials.svg").read_text().count("<svg") == 1
    assert (tmp_path / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_two_keys_on_a_grid_draw_a_heat_map_with_every_mean(tmp_path):
    space = "tune.keys={temperature: [0.3, 0.6, 1.0], top_p: [0.5, 1.0]}"
    run(make(tmp_path, space, "tune.set={n: 2}", "search=grid", "limit=4"))
    table = pq.read_table(tmp_path / "trials.parquet")
    figure = draw_trials(table)
    heat = figure.axes[2]
    shown = sorted(text.get_text() for text in heat.texts)
    cells = [row for row in table.to_pylist() if row["key.top_p"] in (0.5, 1.0)]
    assert len(cells) == 6
    halves = [(row["value_high"] - row["value_low"]) / 2 for row in cells]
    assert shown == sorted(f"{row['value']:.2f}\n±{half:.2f}" for row, half in zip(cells, halves, strict=True))


def test_scattered_trials_are_no_grid():
    rows = [{"trial": i, "state": "complete", "key.a": float(i), "key.b": float(i)} for i in range(5)]
    assert grid_keys(rows, ["key.a", "key.b"]) is None


def test_one_value_of_every_key_draws_nothing(tmp_path):
    run(make(tmp_path, "tune.keys={temperature: [1.0]}", "search=grid", "limit=4"), draw=True)
    assert draw_trials(pq.read_table(tmp_path / "trials.parquet")) is None
    assert not (tmp_path / "trials.svg").exists()
