"""How a figure looks and what files it becomes. A figure is one panel, so that it can be read on a telephone too.

matplotlib is imported when the first figure is drawn; no global state of it is touched.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.metrics.base import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

INK = "#1c2128"  # text and axes; a page that embeds the SVG replaces it by its own text colour
GRID = "#8b949e"
COLOURS = ("#7a828c", "#2f7fd1", "#d9652b", "#2a9d62", "#b155c4", "#b58900", "#d6497f", "#2f9aa8", "#8c6a4f")
_DASHES = ("-", "-", "-", "--", "--", ":", ":", "-.", "-.")


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure to draw: its file name, what a reader should see in it, how to draw it, and its size in inches."""

    name: str
    caption: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (4.8, 3.7)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn figure as files."""

    name: str
    caption: str
    svg: str
    png: bytes

    def inline(self, prefix: str) -> str:
        """SVG to embed in a page: no XML head, ids of its own, a name for readers, ink in the page's text colour."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r'(id="|xlink:href="#|url\(#)', lambda found: f"{found[0]}{prefix}{self.name}-", body)
        role = f'role="img" aria-label="{escape(f"{self.name}: {self.caption}")}"'
        body = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: role, body, count=1)
        return re.sub(re.escape(INK), "currentColor", body, flags=re.IGNORECASE)


def pictures(panels: Iterable[Panel]) -> list[Picture] | None:
    """The panels drawn; None, with a line in the log, where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        log.warning("no figures: matplotlib is not installed (pip install 'aisp-ray[report]')")
        return None
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    look: Any = {**dict.fromkeys(names, INK), "font.size": 10, "font.family": "sans-serif", "svg.fonttype": "none"}
    look["text.parse_math"] = False  # names of settings are texts: a dollar is a dollar
    found = []
    for panel in panels:
        with matplotlib.rc_context({**look, "svg.hashsalt": panel.name}):
            figure, axis = blank(panel.size)
            panel.draw(axis)
            found.append(Picture(panel.name, panel.caption, svg_text(figure), png_bytes(figure)))
    return found


def blank(size: tuple[float, float] = (4.8, 3.7)) -> tuple[Figure, Axes]:
    """A figure with the look of the report, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axis = figure.add_subplot()
    axis.patch.set_alpha(0)
    axis.grid(True, color=GRID, alpha=0.25, linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG on white."""
    target = io.BytesIO()
    figure.patch.set(alpha=1, facecolor="white")
    figure.savefig(target, format="png", dpi=144)
    return target.getvalue()


def svg_text(figure: Figure) -> str:
    """The figure as SVG with its text as text; the same bytes for the same figure."""
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # where things stand is settled: the PNG need not work it out again
    return target.getvalue()


# ---------------------------------------------------------------- on the axes


def style(labels: Sequence[str], label: str) -> dict[str, Any]:
    """Colour and dash of a label: its place in the table decides, the same in every figure."""
    place = list(labels).index(label)
    dash = _DASHES[(place + 4 * (place // len(COLOURS))) % len(_DASHES)]  # a colour used again has another dash
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": dash, "label": label}


def draw_curve(axis: Axes, x: Sequence[float], values: Sequence[Estimate], look: Mapping[str, Any]) -> None:
    """A line of means with its interval as a band; a single point as a dot with a bar."""
    mean, low, high = (np.array([getattr(value, name) for value in values]) for name in ("mean", "low", "high"))
    if len(x) == 1:
        draw_point(axis, (float(x[0]), None), (float(mean[0]), (float(low[0]), float(high[0]))), "o", look)
        return
    axis.plot(x, mean, linewidth=1.8, **look)
    axis.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)


def draw_point(
    axis: Axes, x: tuple[float, Any], y: tuple[float, Any], marker: str, look: Mapping[str, Any]
) -> None:  # fmt: skip
    """A mean with bars to the ends of its intervals; (value, None) and unknown ends draw no bar."""

    def bars(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
        if ends is None or not all(map(math.isfinite, ends)):
            return None
        return [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]

    kept = {key: value for key, value in look.items() if key != "linestyle"}
    axis.errorbar(
        [x[0]], [y[0]], xerr=bars(*x), yerr=bars(*y), fmt=marker, markersize=6, capsize=2, linewidth=1.2, **kept
    )


def ends(value: Estimate) -> tuple[float, float]:
    return value.low, value.high


def finish(axis: Axes, x: str, y: str, legend: bool = True, whole: bool = False) -> None:
    """Names of the axes, a legend where several things are named, whole numbers only on x if it counts."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if whole:
        from matplotlib.ticker import MaxNLocator

        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    names = axis.get_legend_handles_labels()[1]
    if legend and names:
        beside = len(names) > 4  # more would cover what is drawn
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {}
        axis.legend(frameon=False, fontsize="small", **place)


def name_ticks(axis: Axes, places: Sequence[float], texts: Sequence[str], on: str = "x") -> None:
    """Ticks with names. On a horizontal axis long names are turned; one too close to its neighbour is left out."""
    side = axis.xaxis if on == "x" else axis.yaxis
    log_scale = axis.get_xscale() == "log" and on == "x"
    at = [math.log(place) for place in places] if log_scale else list(places)
    span = (max(at) - min(at) if at else 0) or 1
    gap = 0.04  # of the axis: the height of a letter, which a turned name takes
    kept: list[int] = []
    for i in range(len(at)):
        if not kept or abs(at[i] - at[kept[-1]]) / span >= gap:
            kept.append(i)
    side.set_ticks([places[i] for i in kept], [texts[i] for i in kept])
    nearest = min((abs(at[b] - at[a]) / span for a, b in itertools.pairwise(kept)), default=1)
    if on == "x" and max((len(texts[i]) for i in kept), default=0) * 0.022 + 0.02 > nearest:
        side.set_tick_params(rotation=45)
        for label in side.get_ticklabels():
            label.set(ha="right", rotation_mode="anchor")
