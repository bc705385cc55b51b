"""The figures of a search of settings: objective and paired gain over each searched key, heat maps where two keys make
a grid, and the trials in order. Drawn from `trials.parquet` alone.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aisp_ray.report.figures.draw import COLOURS, GRID, Panel, draw_point, finish, name_ticks
from aisp_ray.report.searches import Search
from aisp_ray.tune.table import choosable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CELLS = 144  # of a heat map
_MOST_LINES = 8  # with a colour and a name each
_MOST_TICKS = 9  # values of a list that are named on the axis
_CROWDED = 20  # the widest gap between neighbours over the narrowest, from which on a list's values stand in a row

Row = Mapping[str, Any]  # of trials.parquet, texts of searched keys decoded: `read_trials`
VALUE, GAIN = "value", "gain"  # what a panel shows


def read_trials(table: pa.Table) -> list[Row]:
    """The rows of `trials.parquet` that have a value, the preset first; values of keys that are no numbers decoded."""
    texts = [field.name for field in table.schema if field.name.startswith("key.") and pa.types.is_string(field.type)]
    rows = [row for row in table.to_pylist() if row["value"] is not None]
    return [row | {name: json.loads(row[name]) for name in texts if row[name] is not None} for row in rows]


def searched_keys(rows: Sequence[Row]) -> list[str]:
    """The columns of keys that took more than one value."""
    return [name for name in (rows[0] if rows else ()) if name.startswith("key.") and len(levels(rows, name)) > 1]


def levels(rows: Sequence[Row], key: str) -> list[Any]:
    """The distinct values that a key took: numbers rising, then others by their text."""
    values = {_name(row[key]): row[key] for row in rows}.values()
    return sorted(values, key=lambda value: (not _is_number(value), value if _is_number(value) else 0, str(value)))


def _name(value: Any) -> str:
    """A value of a key as something that can be compared and counted."""
    return json.dumps(value)


def _preset(rows: Sequence[Row]) -> Row | None:
    return rows[0] if rows and rows[0]["trial"] == 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


GAINS = (
    "Paired gain over the preset, on the prompts that a setting saw, with its 95 % interval. A setting whose bar stays "
    "above zero did better than the preset on the tuning prompts. Lines join settings that differ in nothing else "
    "(several lines are set a little apart); faint dots were stopped early."
)
VALUES = (
    "The objective itself, with its 95 % interval over prompts; grey the preset. These intervals hold what prompts "
    "differ by, so settings are told apart by the gains, not here."
)
GRIDS = {
    VALUE: "The objective over two keys, with half of the 95 % interval. Empty cells were stopped early or not tried.",
    GAIN: "The paired gain over two keys, with half of the 95 % interval; blue is better than the preset.",
}
PROGRESS = "Trials in the order in which they were proposed. A long flat line means more trials are unlikely to help."


def panels(rows: Sequence[Row], sweep: bool = False) -> Iterator[Panel]:
    """All of a search. rows: of `read_trials`; sweep: their order is that of a list."""
    keys = searched_keys(rows)
    for what, caption in ((GAIN, GAINS), (VALUE, VALUES)):
        if any(row[what] is not None for row in rows[1:]):
            for key in keys:
                yield Panel(f"{what}_{key.removeprefix('key.')}", caption, partial(draw_key, rows, key, what))
    pair = grid_keys(rows, keys)
    for what, caption in GRIDS.items() if pair is not None else ():
        assert pair is not None
        wide = len(levels(on_grid(rows, pair), pair[0])) > 4
        yield Panel(f"{what}_grid", caption, partial(draw_heat, rows, pair, what), (6.4 if wide else 4.8, 4.4))
    if len(rows) >= 5 and choosable(rows) and not sweep:
        yield Panel("progress", PROGRESS, partial(draw_progress, rows), (6.4, 3.7))


def draw_progress(rows: Sequence[Row], axis: Axes) -> None:
    """Trials in the order in which they were proposed, and the best complete one so far."""
    stopped = [row for row in rows if row["state"] == "stopped"]
    _faint(axis, [row["trial"] for row in stopped], [row["value"] for row in stopped])
    for row in rows:
        if row["state"] == "complete":
            draw_point(axis, (row["trial"], None), (row["value"], _span(row, VALUE)), "o", {"color": COLOURS[1]})
    known = choosable(rows)
    best = [max(row["value"] for row in known[: i + 1]) for i in range(len(known))]
    steps = [row["trial"] for row in known] + [max(row["trial"] for row in rows)]
    axis.step(steps, [*best, best[-1]], where="post", color=COLOURS[2], linewidth=1.4, label="best so far")
    finish(axis, "trial (0 is the preset)", rows[0]["objective"], whole=True)


# ---------------------------------------------------------------- one key


def draw_key(rows: Sequence[Row], key: str, what: str, axis: Axes) -> None:
    """Complete trials with their interval, joined where they differ in this key alone; stopped ones as faint dots."""
    shown = comparable(rows, key)
    at = _places(axis, shown, key)
    preset = _preset(rows)
    if preset is not None:
        span = _span(preset, what)
        if what == VALUE and span is not None:
            axis.axhspan(*span, color=COLOURS[0], alpha=0.1, linewidth=0)
        axis.axhline(preset[what], color=COLOURS[0], linewidth=1.2, label="preset")
    shown = [row for row in shown if row[what] is not None]
    stopped = [row for row in shown if row["state"] == "stopped"]
    _faint(axis, [at[_name(row[key])] for row in stopped], [row[what] for row in stopped])
    lines = curves(shown, key)
    joined = [rest for rest, line in lines.items() if len(line) > 1]
    many = len(joined) > _MOST_LINES
    for rest, line in lines.items():
        place = joined.index(rest) if rest in joined and not many else 0
        look: dict[str, Any] = {"color": COLOURS[1 + place % (len(COLOURS) - 1)]}
        aside = place - (len(joined) - 1) / 2 if rest in joined and not many else 0.0
        points = [(_aside(axis, at[_name(row[key])], aside, list(at.values())), row) for row in line]
        for x, row in points:
            draw_point(axis, (x, None), (row[what], _span(row, what)), "o", look)
        if len(points) > 1:
            name: dict[str, Any] = {"label": rest} if len(joined) > 1 and not many else {}
            axis.plot([x for x, _ in points], [row[what] for _, row in points], linewidth=1.4, **look, **name)
    finish(axis, key.removeprefix("key."), _axis_name(rows, what), legend=len(joined) < 2 or many)
    if len(joined) > 1 and not many:
        axis.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def comparable(rows: Sequence[Row], key: str) -> list[Row]:
    """The trials for this key's panel: all, but of one-at-a-time sweeps those that have the preset's other values."""
    keys = searched_keys(rows)

    def moved(row: Row) -> set[str]:
        return {name for name in keys if row[name] != rows[0][name]}

    star = len(keys) > 1 and _preset(rows) is not None and all(len(moved(row)) <= 1 for row in rows)
    return [row for row in rows if moved(row) <= {key}] if star else list(rows)


def curves(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    """Complete trials by the values of the other keys in words, each list by rising value of this one."""
    keys = searched_keys(rows)
    order = {name: [_name(level) for level in levels(rows, name)] for name in keys}
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: [order[name].index(_name(row[name])) for name in keys]):
        if row["state"] == "complete":
            rest = ", ".join(f"{name.removeprefix('key.')}={_plain(row[name])}" for name in keys if name != key)
            found.setdefault(rest, []).append(row)
    return found


def _places(axis: Axes, rows: Sequence[Row], key: str) -> dict[str, float]:
    """Where each value of the key stands: numbers at themselves (on a logarithm over a wide range), others in a row.

    So do numbers of a list that crowd at one end (0, 0.9, 0.99, 0.999).
    """
    values = levels(rows, key)
    texts = [_plain(value) for value in values]
    numbers = all(_is_number(value) for value in values)
    listed = numbers and len(values) <= _MOST_TICKS and all(float(f"{value:.4g}") == value for value in values)
    wide = numbers and values[0] > 0 and values[-1] / values[0] > 8
    gaps = [b - a for a, b in itertools.pairwise(values)] if numbers else []
    if not numbers or (listed and not wide and max(gaps, default=0) > _CROWDED * min(gaps, default=1)):
        name_ticks(axis, range(len(values)), texts)
        axis.margins(x=0.15 if len(values) < 4 else 0.05)
        return {_name(value): float(i) for i, value in enumerate(values)}
    if wide:
        axis.set_xscale("log")
    if wide and listed:
        name_ticks(axis, values, texts)
        axis.minorticks_off()
    return {_name(value): float(value) for value in values}


def _aside(axis: Axes, x: float, steps: float, values: Sequence[float]) -> float:
    """x a little to the side, so that the bars of several lines do not hide each other."""
    low, high = min(values), max(values)
    if axis.get_xscale() == "log":
        return x * (high / low) ** (0.012 * steps)
    return x + 0.012 * steps * (high - low)


def _faint(axis: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axis.scatter(x, y, s=12, color=GRID, alpha=0.6)


def _span(row: Row, what: str) -> tuple[float, float] | None:
    low, high = row[f"{what}_low"], row[f"{what}_high"]
    return None if low is None or high is None else (low, high)


def _axis_name(rows: Sequence[Row], what: str) -> str:
    objective = rows[0]["objective"]
    return objective if what == VALUE else f"gain in {objective} over the preset"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- two keys


def grid_keys(rows: Sequence[Row], keys: Sequence[str]) -> tuple[str, str] | None:
    """The two keys whose complete trials fill a grid, if there are just two."""
    if len(keys) != 2:
        return None
    cells = {(_name(row[keys[0]]), _name(row[keys[1]])) for row in on_grid(rows, (keys[0], keys[1]))}
    size = len({cell[0] for cell in cells}) * len({cell[1] for cell in cells})
    return (keys[0], keys[1]) if 1 < size <= _MOST_CELLS and len(cells) >= 0.8 * size else None


def on_grid(rows: Sequence[Row], pair: tuple[str, str]) -> list[Row]:
    """Complete trials; the preset only where it shares both its values with others."""
    tried = [row for row in rows if row["state"] == "complete" and row["trial"] > 0]
    xs, ys = ({_name(row[key]) for row in tried} for key in pair)
    return [
        row for row in rows if row["trial"] == 0 and _name(row[pair[0]]) in xs and _name(row[pair[1]]) in ys
    ] + tried


def draw_heat(rows: Sequence[Row], pair: tuple[str, str], what: str, axis: Axes) -> None:
    """A heat map with the mean, and half of its interval, in each cell; empty where nothing was measured."""
    import numpy as np

    complete = on_grid(rows, pair)
    xs, ys = levels(complete, pair[0]), levels(complete, pair[1])
    means = np.full((len(ys), len(xs)), np.nan)
    halves = np.full_like(means, np.nan)
    for row in complete:
        cell = ys.index(row[pair[1]]), xs.index(row[pair[0]])
        span = _span(row, what)
        means[cell] = math.nan if row[what] is None else row[what]
        halves[cell] = math.nan if span is None else (span[1] - span[0]) / 2
    reach = float(np.nanmax(np.abs(means), initial=0.0)) or 1.0
    look = {"cmap": "viridis"} if what == VALUE else {"cmap": "RdBu", "vmin": -reach, "vmax": reach}
    picture = axis.imshow(means, origin="lower", aspect="auto", **look)
    for (y, x), mean in np.ndenumerate(means):
        if math.isfinite(mean):
            red, green, blue, _ = picture.cmap(picture.norm(mean))
            ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
            text = f"{mean:{'+' if what == GAIN else ''}z.2f}"
            text += f"\n±{halves[y, x]:.2f}" if math.isfinite(halves[y, x]) else ""
            axis.text(x, y, text, ha="center", va="center", color=ink, fontsize="small")
    name_ticks(axis, range(len(xs)), [_plain(x) for x in xs])
    name_ticks(axis, range(len(ys)), [_plain(y) for y in ys], on="y")
    axis.grid(False)
    axis.figure.colorbar(picture, ax=axis, label=_axis_name(rows, what))
    finish(axis, pair[0].removeprefix("key."), pair[1].removeprefix("key."), legend=False)


def panels_of(search: Search) -> Iterator[Panel]:
    """`panels` of a search's output."""
    rows = read_trials(search.table) if search.table is not None else []
    yield from panels(rows, (search.manifest.get("config") or {}).get("search") in ("grid", "one_at_a_time"))
