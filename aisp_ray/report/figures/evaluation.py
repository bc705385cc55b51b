"""The figures of one dataset's part of a report. Each function yields its panels, none where there are no values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.metrics.base import Estimate
from aisp_ray.metrics.overoptimisation import Transfer
from aisp_ray.report.figures.draw import COLOURS, GRID, Panel, draw_curve, draw_point, ends, finish, style
from aisp_ray.report.measure import Section
from aisp_ray.report.rejudge import JUDGED
from aisp_ray.report.series import Curve
from aisp_ray.report.summary import MethodSummary
from aisp_ray.report.tables.cells import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*Xh"
_MANY = 1500  # points above this are drawn as one picture inside the SVG

Curves = Mapping[str, Curve]  # by label


def panels(section: Section) -> Iterator[Panel]:
    """All of a section."""
    for drawing in DRAWINGS:
        yield from drawing(section)


def known(section: Section, trace: str, moving: bool = False) -> dict[str, Curve]:
    """The labels' curves of a trace that have values. moving: and a value other than 0 (a control that is never on)."""
    found = {label: section.curves.get(trace, {}).get(label) for label in section.labels}
    kept = {label: curve for label, curve in found.items() if curve is not None and curve.known}
    if not moving:
        return kept
    return {label: curve for label, curve in kept.items() if any(v.count and v.mean != 0 for v in curve.values)}


def _by_samples(section: Section, curves: Curves, y: str, level: float | None, axis: Axes) -> None:
    """Curves over samples. level: a line across."""
    for label, curve in curves.items():
        draw_curve(axis, curve.samples, curve.values, style(section.labels, label))
    if level is not None:
        axis.axhline(level, color=GRID, linewidth=1, linestyle=":")
    finish(axis, "samples per prompt", y)


def _by_iteration(section: Section, curves: Curves, y: str, axis: Axes) -> None:
    for label, curve in curves.items():
        draw_curve(axis, range(1, len(curve.values) + 1), curve.values, style(section.labels, label))
    finish(axis, "iteration", y, whole=True)


def _against(section: Section, pairs: tuple[Curves, Curves], names: tuple[str, str], axis: Axes) -> None:
    """One trace against another, a point per iteration."""
    for label, curve in pairs[0].items():
        points = zip(curve.values, pairs[1][label].values, strict=True)
        line = [(x.mean, y.mean) for x, y in points if x.count and y.count]
        if line:
            axis.plot(*zip(*line, strict=True), marker="o", markersize=3, linewidth=1.4, **style(section.labels, label))
    finish(axis, *names)


def best_reward(section: Section) -> Iterator[Panel]:
    found, gains = known(section, "reward_best"), known(section, "gain")
    if found:
        base = found.get(section.baseline or "")
        level = base.values[-1].mean if base is not None else None
        caption = "Best reward so far against samples per prompt, means over prompts."
        caption += " Dotted: where the baseline ends." if base is not None else ""
        yield Panel("best_reward", caption, partial(_by_samples, section, found, "best reward so far", level))
    if gains:
        caption = "Paired difference to the baseline's best reward after as many samples."
        yield Panel("gain", caption, partial(_by_samples, section, gains, f"gain over {section.baseline}", 0.0))


def iteration_rewards(section: Section) -> Iterator[Panel]:
    for trace, name in (("reward_mean", "mean"), ("reward_max", "highest")):
        found = known(section, trace)
        if found and max(len(curve.values) for curve in found.values()) > 1:
            caption = f"The {name} reward of each iteration's own samples: does the search move?"
            draw = partial(_by_iteration, section, found, f"{name} reward of an iteration")
            yield Panel(f"iteration_{name}", caption, draw)


def diagnostics(section: Section) -> Iterator[Panel]:
    names = {"ess": "Effective sample size of the weights.", "control_norm": "Size of the control, ‖U‖."}
    names |= {name: "Divergence from the policy." for name in section.curves if name.startswith("kl")}
    for name, caption in names.items():
        found = known(section, name, moving=True)
        if found:
            y = {"ess": "effective sample size", "control_norm": "control norm ‖U‖"}.get(name, f"{name}, nats")
            yield Panel(name, caption, partial(_by_iteration, section, found, y))


def reward_kl(section: Section) -> Iterator[Panel]:
    names = [name for name in section.curves if name.startswith("kl") and known(section, name)]
    if names:
        name = min(names, key=lambda name: "token" not in name)  # over tokens where there is one: it compares methods
        pairs, axes = (known(section, name), section.curves["reward_mean"]), f"{name} from the policy, nats"
        caption = "Mean reward against divergence from the policy, a point per iteration."
        yield Panel("reward_kl", caption, partial(_against, section, pairs, (axes, "mean reward of an iteration")))


def paired_scatter(section: Section) -> Iterator[Panel]:
    caption = "Each prompt's reward against the baseline's. Above the line the method wins."
    for record in section.records:
        if record.paired and record.paired.difference.count:
            name = f"paired_{_file_name(record.method)}"
            yield Panel(name, caption, partial(_scatter, section, record), (4.2, 4.2))


def _scatter(section: Section, record: MethodSummary, axis: Axes) -> None:
    x, y = section.rewards[section.baseline or ""], section.rewards[record.method]
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    room = 0.05 * (high - low or 1)
    axis.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
    axis.axline((low, low), slope=1, color=GRID, linewidth=1)
    axis.locator_params(nbins=5)
    many = len(x) > _MANY
    size, alpha = (3, 0.25) if many else (16, 0.7)
    colour = style(section.labels, record.method)["color"]
    axis.scatter(x, y, s=size, color=colour, alpha=alpha, linewidth=0, rasterized=many)
    pair = record.paired
    assert pair is not None
    words = count(pair.wins, "win"), count(pair.ties, "tie"), count(pair.losses, "loss", "losses")
    axis.set_title(", ".join(words), fontsize="small")
    finish(axis, f"reward of {section.baseline}", f"reward of {record.method}", legend=False)


def held_out(section: Section) -> Iterator[Panel]:
    judges = dict.fromkeys(name for record in section.records for name in record.judges)
    for judge in judges:
        if any(record.judges.get(judge, Estimate()).count for record in section.records):
            caption = "The held-out judge against the optimised reward, means over prompts."
            yield Panel(f"held_out_{_file_name(judge)}", caption, partial(_judged, section, judge))
        gains = {label: one for label, one in section.transfers.get(judge, {}).items() if one.bins}
        if gains:
            caption = (
                "What prompts gained in the judge, by what they gained in the reward (fifths of the prompts). "
                "Falling is over-optimisation."
            )
            yield Panel(f"transfer_{_file_name(judge)}", caption, partial(_transferred, section, judge, gains))


def _judged(section: Section, judge: str, axis: Axes) -> None:
    for i, record in enumerate(section.records):
        value, reward = record.judges.get(judge, Estimate()), record.reward
        if value.count and reward.count:
            look, marker = style(section.labels, record.method), _MARKERS[i % len(_MARKERS)]
            draw_point(axis, (reward.mean, ends(reward)), (value.mean, ends(value)), marker, look)
    finish(axis, "optimised reward", f"held-out: {judge}")


def _transferred(section: Section, judge: str, gains: Mapping[str, Transfer], axis: Axes) -> None:
    for label, found in gains.items():
        x, y, _ = zip(*found.bins, strict=True)
        axis.plot(x, y, marker="o", markersize=4, linewidth=1.4, **style(section.labels, label))
    axis.axhline(0, color=GRID, linewidth=1)
    finish(axis, f"gain in reward over {section.baseline}", f"gain in {judge}")


def over_optimisation(section: Section) -> Iterator[Panel]:
    """Judges of the best response so far, against samples and against the optimised reward."""
    for trace in section.curves:
        found = known(section, trace) if trace.startswith(JUDGED) else {}
        if found:
            judge = trace.removeprefix(f"{JUDGED} ")
            caption = "What the held-out judge says of the best response so far, as samples grow."
            draw = partial(_by_samples, section, found, judge, None)
            yield Panel(f"judge_by_samples_{_file_name(judge)}", caption, draw)
            best = {label: section.curves["reward_best"][label] for label in found}
            caption = "Where the line turns down, the search has begun to exploit its reward."
            names = ("best optimised reward so far", judge)
            yield Panel(
                f"over_optimisation_{_file_name(judge)}", caption, partial(_against, section, (best, found), names)
            )


Points = list[tuple[float, Estimate]]  # a setting's value and the reward (or gain) with it


def sensitivity(section: Section) -> Iterator[Panel]:
    """Reward over each setting that differs between outputs; paired gains where there is a baseline."""
    for (method, key), lines in swept(section).items():
        caption = "Reward over the settings that differ between outputs."
        draw = partial(_swept, section, f"{method}.{key}", {rest or method: points for rest, points in lines.items()})
        yield Panel(f"sensitivity_{_file_name(f'{method}_{key}')}", caption, draw)


def _swept(section: Section, name: str, lines: Mapping[str, Points], axis: Axes) -> None:
    for i, (label, points) in enumerate(lines.items()):
        look: dict[str, Any] = {"color": COLOURS[1 + i % (len(COLOURS) - 1)]}
        for x, value in points:
            draw_point(axis, (x, None), (value.mean, ends(value)), "o", look)
        axis.plot([x for x, _ in points], [value.mean for _, value in points], linewidth=1.4, label=label, **look)
    values = [x for points in lines.values() for x, _ in points]
    if min(values) > 0 and max(values) / min(values) > 8:
        axis.set_xscale("log")
    if section.baseline is not None:
        axis.axhline(0, color=COLOURS[0], linewidth=1)
    finish(axis, name, "reward" if section.baseline is None else f"gain over {section.baseline}")


def swept(section: Section) -> dict[tuple[str, str], dict[str, Points]]:
    """(method, setting) -> the other settings in words -> its points, by rising value, of settings that are numbers."""
    found: dict[tuple[str, str], dict[str, Points]] = {}
    for record in section.records:
        method, own = section.settings.get(record.method, (record.method, {}))
        value = record.paired.difference if record.paired else Estimate()
        value = record.reward if section.baseline is None else value
        for key, x in own.items():
            if isinstance(x, int | float) and not isinstance(x, bool) and value.count:
                rest = ", ".join(f"{k}={v}" for k, v in own.items() if k != key)
                found.setdefault((method, key), {}).setdefault(rest, []).append((float(x), value))
    for lines in found.values():
        for points in lines.values():
            points.sort(key=lambda point: point[0])
    return {at: lines for at, lines in found.items() if any(len(points) > 1 for points in lines.values())}


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)[:80]


DRAWINGS: tuple[Callable[[Section], Iterator[Panel]], ...] = (
    best_reward,
    iteration_rewards,
    diagnostics,
    reward_kl,
    paired_scatter,
    held_out,
    over_optimisation,
    sensitivity,
)
