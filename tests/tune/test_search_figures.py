"""The picture of a search."""

import pyarrow.parquet as pq
import pytest
from tune_world import make, run

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection

from aisp_ray.report.figures.draw import blank
from aisp_ray.report.figures.search import grid_keys, panels, read_trials


def axes_of(rows):
    """Panel name -> the axes it was drawn on."""
    found = {}
    for panel in panels(rows):
        _, found[panel.name] = blank()
        panel.draw(found[panel.name])
    return found


def test_a_search_draws_a_panel_a_key(tmp_path):
    run(make(tmp_path, "trials=6", "limit=8"))
    axis = axes_of(read_trials(pq.read_table(tmp_path / "trials.parquet")))["value_temperature"]
    assert axis.get_xlabel() == "temperature"
    assert axis.get_ylabel() == "reward"


def test_two_keys_on_a_grid_draw_a_heat_map_with_every_mean(tmp_path):
    space = "tune.keys={temperature: [0.3, 0.6, 1.0], top_p: [0.5, 1.0]}"
    run(make(tmp_path, space, "tune.set={n: 2}", "search=grid", "limit=4"))
    table = pq.read_table(tmp_path / "trials.parquet")
    heat = axes_of(read_trials(table))["value_grid"]
    shown = sorted(text.get_text() for text in heat.texts)
    cells = [row for row in table.to_pylist() if row["key.top_p"] in (0.5, 1.0)]
    assert len(cells) == 6
    halves = [(row["value_high"] - row["value_low"]) / 2 for row in cells]
    assert shown == sorted(f"{row['value']:.2f}\n±{half:.2f}" for row, half in zip(cells, halves, strict=True))


def test_one_at_a_time_draws_each_key_with_the_others_at_the_preset(tmp_path):
    space = "tune.keys={temperature: [0.3, 0.6, 1.4], top_p: [0.5, 0.8]}"
    run(make(tmp_path, space, "tune.set={n: 2}", "search=one_at_a_time", "limit=4"))
    rows = read_trials(pq.read_table(tmp_path / "trials.parquet"))
    by_key = {row["key.temperature"]: row["gain"] for row in rows if row["key.top_p"] == 0.95}
    axes = axes_of(rows)
    assert [axes[f"gain_{key}"].get_xlabel() for key in ("temperature", "top_p")] == ["temperature", "top_p"]
    (curve,) = [line for line in axes["gain_temperature"].lines if len(line.get_xdata()) == 4]
    assert list(curve.get_xdata()) == [0.3, 0.6, 1.0, 1.4]
    assert list(curve.get_ydata()) == [by_key[x] for x in (0.3, 0.6, 1.0, 1.4)]
    assert "gain_grid" not in axes


def made(**keys):
    """Complete trials in which the keys take these values together."""
    rows = []
    for i, values in enumerate(zip(*keys.values(), strict=True)):
        row = {
            "trial": i,
            "state": "complete",
            "num_failed": 0,
            "objective": "reward",
            "value": 1.0 + i,
            "gain": float(i),
        }
        row |= {f"{name}_{end}": row[name] + side for name in ("value", "gain") for end, side in ENDS}
        rows.append(row | {f"key.{name}": value for name, value in zip(keys, values, strict=True)})
    return rows


ENDS = (("low", -0.5), ("high", 0.5))


def test_numbers_that_crowd_and_texts_stand_in_a_row():
    for values in ([0.0, 0.9, 0.99, 0.999], ["a", "b", "c", None]):
        axis = axes_of(made(x=values))["value_x"]
        assert list(axis.get_xticks()) == [0, 1, 2, 3]
    axis = axes_of(made(x=[1.0, 2.0, 64.0]))["value_x"]
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "64"]


def test_intervals_are_those_of_the_table():
    axis = axes_of(made(x=[1.0, 2.0, 3.0]))["gain_x"]
    bars = [bar for bar in axis.collections if isinstance(bar, LineCollection)]
    spans = sorted(tuple(segment[:, 1]) for bar in bars for segment in bar.get_segments())
    assert spans == [(-0.5, 0.5), (0.5, 1.5), (1.5, 2.5)]


def test_a_preset_without_a_value_draws_the_others():
    rows = made(x=[1.0, 2.0, 3.0])[1:]
    assert "value_x" in axes_of(rows)
    assert "gain_x" not in axes_of([row | {"gain": None} for row in rows])


def test_scattered_trials_are_no_grid():
    rows = [{"trial": i, "state": "complete", "key.a": float(i), "key.b": float(i)} for i in range(5)]
    assert grid_keys(rows, ["key.a", "key.b"]) is None


def test_one_value_of_every_key_draws_nothing(tmp_path):
    run(make(tmp_path, "tune.keys={temperature: [1.0]}", "search=grid", "limit=4"))
    rows = read_trials(pq.read_table(tmp_path / "trials.parquet"))
    assert list(panels(rows)) == []


@pytest.mark.parametrize("values", [[0.001, 0.01, 0.012, 0.5, 0.6, 0.7, 0.8], [f"a long name {i}" for i in range(8)]])
def test_names_of_ticks_do_not_overlap(values):
    axis = axes_of(made(x=values))["value_x"]
    axis.figure.draw_without_rendering()
    labels = [label for label in axis.get_xticklabels() if label.get_text()]
    turned = {label.get_rotation() for label in labels}
    assert len(turned) == 1
    ends = [label.get_window_extent().x1 if turned == {45.0} else label.get_window_extent().x0 for label in labels]
    widths = [12 if turned == {45.0} else label.get_window_extent().width for label in labels]
    assert len(labels) >= 4
    assert all(b - a >= width for a, b, width in zip(ends, ends[1:], widths, strict=False))
