"""What was tried, as one picture: the objective over each searched key, and a heat map where two keys make a grid.

Drawn from `trials.parquet` alone, so that it can be drawn again from any output. matplotlib is imported when it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aisp_ray.report.figures import COLOURS, GRID, blank, draw_point, finish

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_CELLS = 144  # of a heat map

Row = Mapping[str, Any]  # of trials.parquet


def draw_trials(table: pa.Table) -> Figure | None:
    """A panel per key that took more than one number, then the heat map; None if there is nothing to see."""
    rows = [row for row in table.to_pylist() if row["value"] is not None]
    keys = [name for name in table.column_names if name.startswith("key.") and len(numbers(rows, name)) > 1]
    if not keys:
        return None
    pair = grid_keys(rows, keys)
    count = len(keys) + (pair is not None)
    columns = min(3, count)
    figure, axes = blank(columns, math.ceil(count / columns), width=4.8)
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis, key in zip(axes, keys, strict=False):
        draw_key(axis, rows, key)
    if pair is not None:
        draw_heat(figure, axes[len(keys)], rows, pair)
    return figure


def numbers(rows: Sequence[Row], key: str) -> list[float]:
    """The distinct numbers that a key took, rising."""
    return sorted({row[key] for row in rows if isinstance(row[key], int | float)})


def draw_key(axis: Axes, rows: Sequence[Row], key: str) -> None:
    """Trials that saw every prompt with their interval, stopped ones as faint dots, the preset as a band."""
    preset = rows[0]
    if preset["value_low"] is not None:
        axis.axhspan(preset["value_low"], preset["value_high"], color=COLOURS[0], alpha=0.1, linewidth=0)
    axis.axhline(preset["value"], color=COLOURS[0], linewidth=1.2, label="preset")
    shown = [row for row in rows if isinstance(row[key], int | float)]
    stopped = [row for row in shown if row["state"] == "stopped"]
    axis.scatter([row[key] for row in stopped], [row["value"] for row in stopped], s=12, color=GRID, alpha=0.6)
    complete = sorted((row for row in shown if row["state"] == "complete"), key=lambda row: row[key])
    for row in complete:
        span = (row["value_low"], row["value_high"]) if row["value_low"] is not None else None
        draw_point(axis, (row[key], None), (row["value"], span), "o", {"color": COLOURS[1]})
    if len({row[key] for row in complete}) == len(complete):  # one trial a value: a curve
        axis.plot([row[key] for row in complete], [row["value"] for row in complete], color=COLOURS[1], linewidth=1.4)
    values = numbers(shown, key)
    if values[0] > 0 and values[-1] / values[0] > 8:
        axis.set_xscale("log")
    finish(axis, key.removeprefix("key."), rows[0]["objective"])


def grid_keys(rows: Sequence[Row], keys: Sequence[str]) -> tuple[str, str] | None:
    """The two keys whose complete trials fill a grid, if there are just two."""
    if len(keys) != 2:
        return None
    cells = {(row[keys[0]], row[keys[1]]) for row in on_grid(rows, (keys[0], keys[1]))}
    size = len({cell[0] for cell in cells}) * len({cell[1] for cell in cells})
    return (keys[0], keys[1]) if 1 < size <= _MOST_CELLS and len(cells) >= 0.8 * size else None


def on_grid(rows: Sequence[Row], pair: tuple[str, str]) -> list[Row]:
    """Complete trials; the preset only where it shares both its values with others."""
    tried = [row for row in rows if row["state"] == "complete" and row["trial"] > 0]
    xs, ys = ({row[key] for row in tried} for key in pair)
    return [row for row in rows[:1] if row[pair[0]] in xs and row[pair[1]] in ys] + tried


def draw_heat(figure: Figure, axis: Axes, rows: Sequence[Row], pair: tuple[str, str]) -> None:
    """Means as a heat map with the number in each cell; empty where nothing was measured."""
    import numpy as np

    complete = on_grid(rows, pair)
    xs, ys = numbers(complete, pair[0]), numbers(complete, pair[1])
    means = np.full((len(ys), len(xs)), np.nan)
    for row in complete:
        means[ys.index(row[pair[1]]), xs.index(row[pair[0]])] = row["value"]
    picture = axis.imshow(means, origin="lower", aspect="auto", cmap="viridis")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for (y, x), mean in np.ndenumerate(means):
        if math.isfinite(mean):
            ink = "white" if mean < middle else "black"
            axis.text(x, y, f"{mean:.2f}", ha="center", va="center", color=ink, fontsize="small")
    axis.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axis.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axis.grid(False)
    figure.colorbar(picture, ax=axis, label=rows[0]["objective"])
    finish(axis, pair[0].removeprefix("key."), pair[1].removeprefix("key."), legend=False)
