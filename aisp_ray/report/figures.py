"""The figures of a report. Each is a function from what was measured to a matplotlib figure, or None without data.

matplotlib is imported when the first figure is drawn; no global state of it is touched.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.metrics.base import Estimate
from aisp_ray.metrics.overoptimisation import Transfer
from aisp_ray.report.rejudge import JUDGED
from aisp_ray.report.series import Curve
from aisp_ray.report.table import MethodSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1c2128"  # text and axes; a page that embeds the SVG replaces it by its own text colour
GRID = "#8b949e"
COLOURS = ("#7a828c", "#2f7fd1", "#d9652b", "#2a9d62", "#b155c4", "#b58900", "#d6497f", "#2f9aa8", "#8c6a4f")
_DASHES = ("-", "-", "-", "--", "--", ":", ":", "-.", "-.")
_MARKERS = "osD^vP*Xh"
_MANY = 1500  # points above this are drawn as one picture inside the SVG


@dataclass(frozen=True, slots=True)
class Measured:
    """What figures are drawn from, for one dataset. Labels come in the table's order, the baseline first."""

    records: Sequence[MethodSummary]
    curves: Mapping[str, Mapping[str, Curve]]  # trace -> label -> curve
    rewards: Mapping[str, np.ndarray]  # label -> [prompts]
    transfers: Mapping[str, Mapping[str, Transfer]]  # judge -> label -> against the baseline
    settings: Mapping[str, tuple[str, Mapping[str, Any]]]  # label -> (method, the settings that set it apart)
    baseline: str | None

    @property
    def labels(self) -> list[str]:
        return [record.method for record in self.records]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure to draw: its file name, what a reader should see in it, and how to draw it."""

    name: str
    caption: str
    draw: Callable[[Measured], Figure | None]


def style(labels: Sequence[str], label: str) -> dict[str, Any]:
    """Colour and dash of a label: its place in the table decides, the same in every figure."""
    place = list(labels).index(label)
    dash = _DASHES[(place + 4 * (place // len(COLOURS))) % len(_DASHES)]  # a colour used again has another dash
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": dash, "label": label}


def blank(columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """A figure with the look of the report, and its axes in reading order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(columns * rows)]
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.grid(True, color=GRID, alpha=0.25, linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_curve(axis: Axes, x: Sequence[float], values: Sequence[Estimate], look: Mapping[str, Any]) -> None:
    """A line of means with its interval as a band; a single point as a dot with a bar."""
    mean = np.array([value.mean for value in values])
    low = np.array([value.low for value in values])
    high = np.array([value.high for value in values])
    if len(x) == 1:
        look = {key: value for key, value in look.items() if key != "linestyle"}
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


def finish(axis: Axes, x: str, y: str, legend: bool = True) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if legend and axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize="small")


def best_reward(measured: Measured) -> Figure | None:
    found, gains = known(measured, "reward_best"), known(measured, "gain")
    if not found:
        return None
    figure, axes = blank(columns=2 if gains else 1, width=5.4, height=4.0)
    for label, curve in found.items():
        draw_curve(axes[0], curve.samples, curve.values, style(measured.labels, label))
    base = found.get(measured.baseline or "")
    if base is not None:
        axes[0].axhline(base.values[-1].mean, color=GRID, linewidth=1, linestyle=":")
    finish(axes[0], "samples per prompt", "best reward so far")
    for label, curve in gains.items():
        draw_curve(axes[1], curve.samples, curve.values, style(measured.labels, label))
    if gains:
        axes[1].axhline(0, color=COLOURS[0], linewidth=1)
        finish(axes[1], "samples per prompt", f"gain over {measured.baseline}", legend=False)
    return figure


def iteration_rewards(measured: Measured) -> Figure | None:
    mean, top = known(measured, "reward_mean"), known(measured, "reward_max")
    if not mean or max(len(curve.values) for curve in mean.values()) < 2:
        return None
    figure, axes = blank(columns=2, width=4.8)
    for axis, found, name in zip(axes, (mean, top), ("mean reward", "highest reward"), strict=True):
        for label, curve in found.items():
            steps = range(1, len(curve.values) + 1)
            draw_curve(axis, steps, curve.values, style(measured.labels, label))
        finish(axis, "iteration", f"{name} of an iteration's samples", legend=axis is axes[0])
    return figure


def diagnostics(measured: Measured) -> Figure | None:
    names = {"ess": "effective sample size", "control_norm": "control norm ‖U‖"}
    names |= {name: f"{name}, nats" for name in measured.curves if name.startswith("kl")}
    panels = {name: known(measured, name, moving=True) for name in names}
    panels = {name: found for name, found in panels.items() if found}
    if not panels:
        return None
    figure, axes = blank(columns=len(panels), width=4.4)
    for axis, (name, found) in zip(axes, panels.items(), strict=True):
        for label, curve in found.items():
            draw_curve(axis, range(1, len(curve.values) + 1), curve.values, style(measured.labels, label))
        finish(axis, "iteration", names[name])
    return figure


def reward_kl(measured: Measured) -> Figure | None:
    names = [name for name in measured.curves if name.startswith("kl") and known(measured, name)]
    if not names:
        return None
    name = min(
        names, key=lambda name: "token" not in name
    )  # over tokens where there is one: it compares across methods
    figure, (axis,) = blank(width=7.2, height=4.2)
    for label, curve in known(measured, name).items():
        reward = measured.curves["reward_mean"][label]
        pairs = [(k.mean, r.mean) for k, r in zip(curve.values, reward.values, strict=True) if k.count and r.count]
        axis.plot(*zip(*pairs, strict=True), marker="o", markersize=3, linewidth=1.4, **style(measured.labels, label))
    finish(axis, f"{name} from the policy, nats", "mean reward of an iteration")
    return figure


def paired_scatter(measured: Measured) -> Figure | None:
    others = [record for record in measured.records if record.paired and record.paired.difference.count]
    if not others:
        return None
    columns = min(3, len(others))
    figure, axes = blank(columns, math.ceil(len(others) / columns), width=4.0, height=4.0)
    for axis in axes[len(others) :]:
        axis.set_axis_off()
    for axis, record in zip(axes, others, strict=False):
        x, y = measured.rewards[measured.baseline or ""], measured.rewards[record.method]
        both = np.isfinite(x) & np.isfinite(y)
        x, y = x[both], y[both]
        span = [min(x.min(), y.min()), max(x.max(), y.max())]
        axis.plot(span, span, color=GRID, linewidth=1)
        look = style(measured.labels, record.method)
        size, alpha = (16, 0.7) if len(x) <= _MANY else (3, 0.25)
        axis.scatter(x, y, s=size, color=look["color"], alpha=alpha, linewidth=0, rasterized=len(x) > _MANY)
        pair = record.paired
        axis.set_title(f"{pair.wins} wins, {pair.ties} ties, {pair.losses} losses", fontsize="small")
        finish(axis, f"reward of {measured.baseline}", f"reward of {record.method}", legend=False)
    return figure


def held_out(measured: Measured) -> Figure | None:
    judges = list(dict.fromkeys(name for record in measured.records for name in record.judges))
    judges = [name for name in judges if any(r.judges.get(name, Estimate()).count for r in measured.records)]
    if not judges:
        return None
    figure, axes = blank(columns=2, rows=len(judges), width=4.8)
    for i, judge in enumerate(judges):
        left, right = axes[2 * i], axes[2 * i + 1]
        for record in measured.records:
            value = record.judges.get(judge, Estimate())
            if value.count and record.reward.count:
                look = style(measured.labels, record.method)
                marker = _MARKERS[measured.labels.index(record.method) % len(_MARKERS)]
                reward = record.reward
                draw_point(left, (reward.mean, ends(reward)), (value.mean, ends(value)), marker, look)
        finish(left, "optimised reward", f"held-out: {judge}", legend=i == 0)
        for label, found in measured.transfers.get(judge, {}).items():
            if found.bins:
                x, y, _ = zip(*found.bins, strict=True)
                right.plot(x, y, marker="o", markersize=4, linewidth=1.4, **style(measured.labels, label))
        right.axhline(0, color=GRID, linewidth=1)
        finish(right, f"gain in reward over {measured.baseline}", f"gain in {judge}", legend=False)
    return figure


def over_optimisation(measured: Measured) -> Figure | None:
    """Judges of the best response so far, against samples and against the optimised reward."""
    names = [name for name in measured.curves if name.startswith(JUDGED) and known(measured, name)]
    if not names:
        return None
    figure, axes = blank(columns=2, rows=len(names), width=4.8)
    for i, name in enumerate(names):
        left, right = axes[2 * i], axes[2 * i + 1]
        judge = name.removeprefix(f"{JUDGED} ")
        for label, curve in known(measured, name).items():
            draw_curve(left, curve.samples, curve.values, style(measured.labels, label))
            reward = measured.curves["reward_best"][label]
            pairs = [(r.mean, j.mean) for r, j in zip(reward.values, curve.values, strict=True) if r.count and j.count]
            look = style(measured.labels, label)
            right.plot(*zip(*pairs, strict=True), marker="o", markersize=3, linewidth=1.4, **look)
        finish(left, "samples per prompt", judge, legend=i == 0)
        finish(right, "best optimised reward so far", judge, legend=False)
    return figure


Points = list[tuple[float, Estimate]]  # a setting's value and the reward (or gain) with it


def sensitivity(measured: Measured) -> Figure | None:
    """Reward over each setting that differs between outputs; paired gains where there is a baseline."""
    panels = swept(measured)
    if not panels:
        return None
    columns = min(3, len(panels))
    figure, axes = blank(columns, math.ceil(len(panels) / columns), width=4.6)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, ((method, key), lines) in zip(axes, panels.items(), strict=False):
        for i, (rest, points) in enumerate(lines.items()):
            look = {"color": COLOURS[1 + i % (len(COLOURS) - 1)], "label": rest or method}
            for x, value in points:
                draw_point(axis, (x, None), (value.mean, ends(value)), "o", {"color": look["color"]})
            axis.plot([x for x, _ in points], [value.mean for _, value in points], linewidth=1.4, **look)
        values = [x for points in lines.values() for x, _ in points]
        if min(values) > 0 and max(values) / min(values) > 8:
            axis.set_xscale("log")
        if measured.baseline is not None:
            axis.axhline(0, color=COLOURS[0], linewidth=1)
        finish(axis, f"{method}.{key}", "reward" if measured.baseline is None else f"gain over {measured.baseline}")
    return figure


def swept(measured: Measured) -> dict[tuple[str, str], dict[str, Points]]:
    """(method, setting) -> the other settings in words -> its points, by rising value, of settings that are numbers."""
    panels: dict[tuple[str, str], dict[str, Points]] = {}
    for record in measured.records:
        method, own = measured.settings.get(record.method, (record.method, {}))
        value = record.paired.difference if record.paired else Estimate()
        value = record.reward if measured.baseline is None else value
        for key, x in own.items():
            if isinstance(x, int | float) and not isinstance(x, bool) and value.count:
                rest = ", ".join(f"{k}={v}" for k, v in own.items() if k != key)
                panels.setdefault((method, key), {}).setdefault(rest, []).append((float(x), value))
    for lines in panels.values():
        for points in lines.values():
            points.sort(key=lambda point: point[0])
    return {at: lines for at, lines in panels.items() if any(len(points) > 1 for points in lines.values())}


def known(measured: Measured, trace: str, moving: bool = False) -> dict[str, Curve]:
    """The labels' curves of a trace that have values. moving: and a value other than 0 (a control that is never on)."""
    found = {label: measured.curves.get(trace, {}).get(label) for label in measured.labels}
    kept = {label: curve for label, curve in found.items() if curve is not None and curve.known}
    if not moving:
        return kept
    return {label: curve for label, curve in kept.items() if any(v.count and v.mean != 0 for v in curve.values)}


DRAWINGS = (
    Drawing(
        "best_reward",
        "Best reward so far against samples per prompt. Left: means, dotted the baseline's last. Right: paired "
        "differences to the baseline after as many samples.",
        best_reward,
    ),
    Drawing(
        "iteration_rewards",
        "Mean and highest reward among an iteration's samples. A flat mean is a search that does not adapt.",
        iteration_rewards,
    ),
    Drawing("diagnostics", "Effective sample size, size of the control, divergence from the policy.", diagnostics),
    Drawing("reward_kl", "Mean reward against divergence from the policy, a point per iteration.", reward_kl),
    Drawing("paired", "Each prompt's reward against the baseline's. Above the line the method wins.", paired_scatter),
    Drawing(
        "held_out",
        "Left: the held-out judge against the optimised reward. Right: what prompts gained in the judge, by what they "
        "gained in the reward (fifths of the prompts). Falling is over-optimisation.",
        held_out,
    ),
    Drawing(
        "over_optimisation",
        "What held-out judges say of the best response so far, as samples grow. Where the line on the right turns "
        "down, the search has begun to exploit its reward.",
        over_optimisation,
    ),
    Drawing("sensitivity", "Reward over the settings that differ between outputs.", sensitivity),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn figure as files."""

    svg: str
    png: bytes


def drawn(measured: Measured, prefix: str = "") -> dict[str, Picture]:
    """Every figure that has data, by name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # names of settings are texts: a dollar is a dollar
        pictures = {
            drawing.name: draw_picture(lambda draw=drawing.draw: draw(measured), f"{prefix}{drawing.name}")
            for drawing in DRAWINGS
        }
    return {name: picture for name, picture in pictures.items() if picture is not None}


def draw_picture(draw: Callable[[], Figure | None], name: str) -> Picture | None:
    """The figure that `draw` makes, in the look of the report; None if it makes none. name: of its ids in the SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    look = {**dict.fromkeys(names, INK), "font.size": 10, "font.family": "sans-serif"}
    with matplotlib.rc_context({**look, "svg.fonttype": "none", "svg.hashsalt": name}):
        figure = draw()
        return None if figure is None else Picture(svg_text(figure), png_bytes(figure))


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG on white."""
    target = io.BytesIO()
    figure.patch.set(alpha=1, facecolor="white")
    figure.savefig(target, format="png", dpi=144)
    figure.patch.set_alpha(0)
    return target.getvalue()


def svg_text(figure: Figure) -> str:
    """The figure as SVG with its text as text; the same bytes for the same figure."""
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # where things stand is settled: the PNG need not work it out again
    return target.getvalue()


def inline_svg(text: str, name: str) -> str:
    """SVG to embed in a page: no XML head, ids of its own, ink in the page's text colour."""
    body = text[text.index("<svg") :]
    body = re.sub(r'(id="|xlink:href="#|url\(#)', lambda found: f"{found[0]}{name}-", body)
    body = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", body, count=1)
    return re.sub(re.escape(INK), "currentColor", body, flags=re.IGNORECASE)
