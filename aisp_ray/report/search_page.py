"""A search of settings as a part of the page, and as files: the choice and its confirmation, figures, all trials."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from aisp_ray.metrics.base import Estimate
from aisp_ray.report.figures import Picture, draw_picture
from aisp_ray.report.page import figure_grid, html_table, tone_of
from aisp_ray.report.search_figures import PICTURES, read_trials
from aisp_ray.report.searches import Search
from aisp_ray.tune.heldout import Confirmation, verdict
from aisp_ray.tune.space import text_of
from aisp_ray.tune.table import LEDGER, format_trials, ranked

Row = Mapping[str, Any]  # of trials.parquet

_COSTS = dict(zip(LEDGER, ("samples", "tokens", "reward calls", "policy s", "reward s"), strict=True))
_NOTE = (
    "Means over the prompts that a setting saw, with their 95 % bootstrap interval. Gain: mean paired difference to "
    "the preset on the same prompts, coloured where its interval leaves zero out. Settings that were stopped saw the "
    "first prompts only: compare them by their gain. Costs are sums over these prompts."
)


def search_html(search: Search, drawn: Sequence[tuple[str, str]]) -> str:
    """The search's part of the page. drawn: (inline SVG, caption) of its figures."""
    parts = [
        f"<h2>Search of {escape(search.name)}</h2>",
        f'<p class="note">{escape(_intro(search))}</p>',
        *_choice(search),
        figure_grid(search.name, drawn) if drawn else "",
        _trials(search) if search.trials else "",
    ]
    return "\n".join(part for part in parts if part)


def _intro(search: Search) -> str:
    """What was searched, how, and what it cost, in words."""
    rows, config = search.trials, search.manifest.get("config") or {}
    if not rows:
        return f"No trial is complete yet; {search.num_evaluations:,} evaluations (setting × prompt) are on disk."
    states = Counter(row["state"] for row in rows[1:])
    words = [f"{states[state]} {text}" for state, text in _STATES.items() if states[state]]
    spent = sum(row["num_prompts"] for row in rows)
    text = f"The preset and {len(rows) - 1} settings"
    text += f" by {config['search']}" if config.get("search") else ""
    text += f" ({', '.join(words)})" if words else ""
    text += f"; objective: {rows[0]['objective']}"
    first = rows[0]
    if first["num_samples"] and first["num_prompts"]:
        text += f"; {first['num_samples'] / first['num_prompts']:,.0f} samples a prompt for every setting"
    text += f". Spent: {spent:,} evaluations (setting × prompt)"
    grid = (search.summary.get("cost") or {}).get("evaluations_of_the_full_grid") if search.finished else None
    return f"{text}; the full grid takes {grid:,}." if grid else f"{text}."


_STATES = {
    "complete": "saw all prompts",
    "stopped": "stopped early",
    "running": "under way",
    "invalid": "not allowed",
}


# ---------------------------------------------------------------- the choice


def _choice(search: Search) -> Iterator[str]:
    """The chosen setting, its confirmation, and the preset to use it."""
    best, tuning = search.best, search.confirmation("tuning")
    if best is None:
        yield '<p class="note">No setting has a value on all tuning prompts yet.</p>'
        return
    settings = "the preset itself" if best["trial"] == 0 else text_of(json.loads(best["settings"]))
    if tuning is None:
        yield (
            f"<h3>Best so far: {escape(settings)}</h3>"
            f'<p class="note">{escape(_span(best, "value"))} on {best["num_prompts"]} tuning prompts. Nothing has '
            "been chosen, nor measured on held-out prompts: the search has not come to its end.</p>"
        )
        return
    yield _confirmed(search, settings, tuning)
    if search.best_yaml is not None:
        yield (
            "<details open><summary>best.yaml <small>a file of conf/method</small></summary>"
            f"<pre>{escape(search.best_yaml)}</pre></details>"
        )


def _confirmed(search: Search, settings: str, tuning: Confirmation) -> str:
    heldout = search.confirmation("heldout")
    sets = {"tuning prompts": tuning} | ({"held-out prompts": heldout} if heldout is not None else {})
    heads = [f"{search.trials[0]['objective']}", *(f"{each.best.count} {name}" for name, each in sets.items())]
    lines = []
    for name, text in (("preset", "preset"), ("best", "chosen setting"), ("gain", "paired gain")):
        values = [getattr(each, name) for each in sets.values()]
        cells = [_cell(value, sign=name == "gain") for value in values]
        tones = [tone_of(value) if name == "gain" else "" for value in values]
        inner = "".join(f"<td{look}>{escape(cell)}</td>" for look, cell in zip(tones, cells, strict=True))
        lines.append(f"<tr><td>{text}</td>{inner}</tr>")
    note = "Mean and 95 % bootstrap interval over prompts. No setting was chosen on the held-out prompts."
    told = verdict(tuning, heldout) if heldout is not None else "Not measured on held-out prompts (heldout_limit=0)."
    return f"{html_table(f'Chosen: {settings}', heads, lines, note)}\n<p>{escape(told)}</p>"


# ---------------------------------------------------------------- all trials


def _trials(search: Search) -> str:
    """All trials, best first."""
    heads = ["trial", "state", *search.keys, "prompts", search.trials[0]["objective"], "gain over the preset"]
    heads += list(_COSTS.values())
    best = search.best
    lines = []
    for row in ranked(search.trials):
        chosen = best is not None and row["trial"] == best["trial"]
        look = ' class="chosen"' if chosen else ""
        lines.append(f"<tr{look}>{''.join(_trial(search, row, chosen))}</tr>")
    table = html_table("Trials", heads, lines, _NOTE)
    return table.replace('class="scroll"', 'class="scroll tall"', 1)


def _trial(search: Search, row: Row, chosen: bool) -> Iterator[str]:
    state = "preset" if row["trial"] == 0 else row["state"]
    if chosen:
        state += ", chosen" if search.finished else ", best so far"
    yield f'<td>{row["trial"]}</td><td class="state">{escape(state)}</td>'
    settings = json.loads(row["settings"])
    for key in search.keys:
        yield f"<td>{escape(shown(settings[key])) if key in settings else '–'}</td>"
    if row["reason"] is not None:
        yield f'<td class="reason" colspan="{3 + len(_COSTS)}">{escape(row["reason"])}</td>'
        return
    failed = f" ({row['num_failed']} without a value)" if row["num_failed"] else ""
    yield f"<td>{row['num_prompts']}{failed}</td><td>{escape(_span(row, 'value'))}</td>"
    gain = Estimate(*(math.nan if row[f"gain{end}"] is None else row[f"gain{end}"] for end in ("", "_low", "_high")))
    yield f"<td{tone_of(gain)}>{escape(_cell(gain, sign=True)) if row['trial'] else ''}</td>"
    for name in _COSTS:
        form = ",.1f" if name.endswith("seconds") else ",.0f"
        yield f"<td>{'–' if row[name] is None else format(row[name], form)}</td>"


def shown(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _span(row: Row, name: str) -> str:
    return _cell(Estimate(*(math.nan if row[f"{name}{end}"] is None else row[f"{name}{end}"] for end in _ENDS)))


_ENDS = ("", "_low", "_high")


def _cell(value: Estimate, sign: bool = False) -> str:
    """'1.554 [1.469, 1.633]'; a dash where there is no mean, no brackets where there is no interval."""
    if not math.isfinite(value.mean):
        return "–"
    text = f"{value.mean:{'+' if sign else ''}z.3f}"
    text += f" [{value.low:z.3f}, {value.high:z.3f}]" if math.isfinite(value.low) else ""
    return text.replace("-", "−")


# ---------------------------------------------------------------- files


def search_json(search: Search) -> dict[str, Any]:
    """The search in the report's summary.json."""
    parts = {name: search.confirmation(name) for name in ("tuning", "heldout")}
    return {
        "out": search.out,
        "name": search.name,
        "finished": search.finished,
        "best": None if search.best is None else {name: search.best[name] for name in ("trial", "settings", "value")},
        **{name: None if part is None else part.as_json for name, part in parts.items()},
    }


def search_pictures(search: Search, prefix: str) -> dict[str, tuple[Picture, str]]:
    """Name -> (figure, caption) of what there is to see.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = read_trials(search.table) if search.table is not None else []
    sweep = (search.manifest.get("config") or {}).get("search") in ("grid", "one_at_a_time")
    found = {}
    for name, (caption, draw) in PICTURES.items():
        if sweep and name == "progress":  # its order is that of a list
            continue
        picture = draw_picture(lambda draw=draw: draw(rows), f"{prefix}{name}")
        if picture is not None:
            found[name] = picture, caption
    return found


def trials_csv(search: Search) -> str:
    """Every column of trials.parquet at full precision; unknown is an empty cell."""
    target = io.StringIO()
    names = search.table.column_names if search.table is not None else []
    writer = csv.DictWriter(target, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(search.trials)
    return target.getvalue()


def search_text(search: Search, most: int = 12) -> str:
    """The search for a terminal: the best trials and what became of the choice."""
    lines = [f"search of {search.name} ({search.out})"]
    if search.table is not None:
        lines.append(format_trials(search.table, most))
    tuning, heldout = (search.confirmation(part) for part in ("tuning", "heldout"))
    if tuning is not None and heldout is not None:
        gain = _cell(heldout.gain, sign=True).replace("−", "-")
        lines.append(f"held-out gain of the chosen setting: {gain}. {verdict(tuning, heldout)}")
    elif tuning is None:
        lines.append("the search has not come to its end")
    return "\n".join(lines)
