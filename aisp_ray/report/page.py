"""The page: one HTML file with the table, the figures, a browser of all prompts, and how the run was made."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import yaml

from aisp_ray.metrics.base import Estimate
from aisp_ray.metrics.paired import TIE
from aisp_ray.report.budgets import NOTE, budget_cells
from aisp_ray.report.figures import COLOURS
from aisp_ray.report.formats import POLICY_SECONDS, REWARD_SECONDS, columns_of, footnote, win_tie_loss, with_intervals
from aisp_ray.report.measure import Section
from aisp_ray.report.published import compare_first

MAX_PROMPTS = 20_000  # prompts in the page's browser; the table is of all
_TRACES = {"best": "reward_best", "mean": "reward_mean", "max": "reward_max", "ess": "ess", "norm": "control_norm"}


def render(
    sections: Sequence[Section],
    figures: Mapping[str, Sequence[tuple[str, str]]],
    notices: Sequence[str],
    runs: Mapping[str, Mapping[str, Any]],
    searches: Mapping[str, str] | None = None,
) -> str:
    """The page as text.

    figures: dataset -> (inline SVG, caption). runs: output -> {"manifest.json": ..., "summary.json": ...}.
    searches: a search's name -> its part of the page.
    """
    searches = searches or {}
    folder = files("aisp_ray.report")
    total = sum(len(prompts_of(section)) for section in sections)
    scope = "Everything below is in this file; nothing is loaded from elsewhere. Numbers are rounded, the rows are not."
    if total > MAX_PROMPTS:
        scope += f" The first {MAX_PROMPTS:,} of {total:,} prompts are here; the table is of all."
    return Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(", ".join(_titles(sections, searches))),
        meta=escape(f"{total:,} prompts, {len({r.method for s in sections for r in s.records})} methods"),
        css=folder.joinpath("page.css").read_text(encoding="utf-8"),
        js=folder.joinpath("page.js").read_text(encoding="utf-8"),
        notices=_notices(notices),
        tables="\n".join(_tables(sections, searches, runs)),
        figures=_all_figures(figures) if sections else "",
        browser="" if total else "hidden",
        scope=escape(scope),
        facts="\n".join(_facts(out, values) for out, values in runs.items()),
        data=packed(payload(sections)),
    )


def _titles(sections: Sequence[Section], searches: Mapping[str, str]) -> Iterator[str]:
    yield from (section.dataset for section in sections if not section.of_search)
    yield from (f"search of {name}" for name in searches)


def _tables(
    sections: Sequence[Section], searches: Mapping[str, str], runs: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:  # fmt: skip
    """Tables of evaluations, then searches, then what the searches chose on held-out prompts."""
    many = len(sections) + len(searches) > 1
    for section in sections:
        if not section.of_search:
            yield _table(section, section.dataset if many else "Result") + _published_table(section, runs)
    yield from searches.values()
    for section in sections:
        if section.of_search:
            yield _table(section, f"Presets and chosen settings: {section.dataset}")


def _all_figures(figures: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    if not figures:
        note = 'No figures: matplotlib is not installed (pip install "aisp-ray[report]").'
        return f'<h2>Figures</h2><p class="note">{note}</p>'
    head = "<h2>Figures: {}</h2>" if len(figures) > 1 else "<h2>Figures</h2>"
    return "\n".join(head.format(escape(name)) + figure_grid(name, drawn) for name, drawn in figures.items())


def _notices(notices: Sequence[str]) -> str:
    if not notices:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in notices)
    return f'<div class="notices" role="note"><strong>Before you quote this</strong><ul>{items}</ul></div>'


def _table(section: Section, title: str) -> str:
    """The table of one dataset and, below, what rewards cost."""
    columns = [column for column in columns_of(section.records) if column.head not in (POLICY_SECONDS, REWARD_SECONDS)]
    rows = list(zip(*(column.cells for column in columns), strict=True))
    lines = [f"<h2>{escape(title)}</h2>", '<div class="scroll"><table class="summary"><thead><tr>']
    lines += [f"<th>{escape(column.head)}</th>" for column in columns] + ["</tr></thead><tbody>"]
    for record, row in zip(section.records, rows, strict=True):
        cells = [f"<td>{_swatch(section, record.method)}{escape(row[0])}</td>"]
        for column, cell in zip(columns[1:], row[1:], strict=True):
            tone = tone_of(record.paired.difference) if record.paired and column.head.startswith("vs ") else ""
            cells.append(f"<td{tone}>{escape(minus(cell))}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append(f'</tbody></table></div><p class="note">{escape(footnote(section.records))}</p>')
    return "\n".join([*lines, _budget_table(section), _judge_table(section), _cost_table(section)])


def tone_of(difference: Estimate) -> str:
    """Coloured where the interval leaves zero out."""
    return ' class="better"' if difference.low > 0 else ' class="worse"' if difference.high < 0 else ""


def _budget_table(section: Section) -> str:
    """Best reward so far at parts of the budget."""
    heads, rows = budget_cells(section.budgets, section.measured.baseline)
    lines = []
    for label, *cells in rows:
        shown = "".join(f"<td>{escape(minus(cell))}</td>" for cell in cells)
        lines.append(f"<tr><td>{_swatch(section, label)}{escape(label)}</td>{shown}</tr>")
    return html_table("At a part of the samples", heads, lines, NOTE) if lines else ""


def _judge_table(section: Section) -> str:
    """What the gains are worth to rewards that the search did not see."""
    base = section.measured.baseline
    lines = []
    for judge, against in section.measured.transfers.items():
        records = [record for record in section.records if judge in record.judges_paired]
        pairs = [record.judges_paired[judge] for record in records]
        gains = with_intervals([pair.difference for pair in pairs], sign=True)
        for record, pair, gain in zip(records, pairs, gains, strict=True):
            cells = [
                f"<td{tone_of(pair.difference)}>{escape(minus(gain))}</td>",
                f"<td>{minus(win_tie_loss(pair))}</td>",
                f"<td>{_number(pair.win_rate, '.0%')}</td>",
                f"<td>{minus(_number(against[record.method].rank_correlation, '.2f'))}</td>",
            ]
            head = f"<td>{_swatch(section, record.method)}{escape(record.method)}</td><td>{escape(judge)}</td>"
            lines.append(f"<tr>{head}{''.join(cells)}</tr>")
    if not lines:
        return ""
    heads = ("method", "judge", f"vs {base}", "win/tie/loss", "win rate", "rank correlation of gains")
    note = (
        "Rank correlation (Spearman): do the prompts that gained in the optimised reward gain in the judge too? "
        "Around 0 or below, the gain is the reward model's alone. A tie counts half a win."
    )
    return html_table("Held-out judges", heads, lines, note)


def _cost_table(section: Section) -> str:
    base = section.measured.baseline
    heads = ["method", "tokens/s", "reward calls/s", POLICY_SECONDS, REWARD_SECONDS]
    if base is not None:
        heads += [
            f"samples to {base}'s final mean",
            f"prompts that reach {base}'s reward",
            "samples they need (median)",
        ]
    lines = []
    for record in section.records:
        cost = section.costs[record.method]
        cells = [_number(cost.tokens_per_second, ",.0f"), _number(cost.calls_per_second, ",.0f")]
        cells += [_number(record.policy_seconds, ".3g"), _number(record.reward_seconds, ".3g")]
        if base is not None:
            cells += [_number(cost.samples_to_baseline, ",.0f"), _number(cost.share_reached, ".0%")]
            cells.append(_number(cost.median_samples, ",.0f"))
        head = f"<td>{_swatch(section, record.method)}{escape(record.method)}</td>"
        lines.append(f"<tr>{head}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    note = "Tokens and reward calls a second of the models' busy time; seconds per prompt. – is never, or not measured."
    return html_table("Cost", heads, lines, note)


def _published_table(section: Section, runs: Mapping[str, Mapping[str, Any]]) -> str:
    comparison = compare_first(section.records, runs)
    if comparison is None:
        return ""
    lines = ["".join(f"<td>{escape(minus(cell))}</td>" for cell in line) for line in comparison.lines]
    return html_table("Published", comparison.heads, [f"<tr>{line}</tr>" for line in lines], comparison.note)


def html_table(title: str, heads: Sequence[str], lines: Sequence[str], note: str) -> str:
    """A table under a heading; `lines` are rows in HTML, the other texts are escaped."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return (
        f'<h3>{escape(title)}</h3><div class="scroll"><table class="summary"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div><p class="note">{escape(note)}</p>'
    )


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def minus(cell: str) -> str:
    return cell.replace("-", "−") if cell[:1] == "-" and len(cell) > 1 else "–" if cell == "-" else cell


def _swatch(section: Section, label: str) -> str:
    return f'<span class="swatch" style="background:{colour_of(section, label)}"></span>'


def colour_of(section: Section, label: str) -> str:
    return COLOURS[section.measured.labels.index(label) % len(COLOURS)]


def figure_grid(name: str, drawn: Sequence[tuple[str, str]]) -> str:
    """Figures, each an inline SVG, over their captions."""
    items = "".join(f"<figure{_wide(svg)}>{svg}<figcaption>{escape(text)}</figcaption></figure>" for svg, text in drawn)
    return f'<div class="figures" data-dataset="{escape(name)}">{items}</div>'


def _wide(svg: str) -> str:
    """A class for figures of three panels and more, which take a row of their own."""
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    return ' class="wide"' if size and float(size[1]) > 2.7 * float(size[2]) else ""


def _facts(out: str, values: Mapping[str, Any]) -> str:
    """Configuration, versions, hardware, budgets: a run's own files, folded."""
    blocks = []
    for name, value in values.items():
        for key, inner in value.items():
            shown = yaml.safe_dump(inner, sort_keys=False, allow_unicode=True, width=110)
            title = f"{escape(key)} <small>{escape(name)}</small>"
            blocks.append(f"<details><summary>{title}</summary><pre>{escape(shown)}</pre></details>")
    blocks = blocks or ['<p class="note">The output holds no manifest.json or summary.json (yet).</p>']
    return f'<details class="facts"><summary>{escape(out)}</summary>{"".join(blocks)}</details>'


# ---------------------------------------------------------------- what the browser of prompts reads


def prompts_of(section: Section) -> dict[tuple[str, str], list[int]]:
    """(prompt id, prompt) -> its rows' positions, in input order."""
    columns = section.columns
    found: dict[tuple[str, str], list[int]] = {}
    order = sorted(range(len(columns["prompt_id"])), key=lambda i: (columns["ordinal"][i] or 0, i))
    for i in order:
        found.setdefault((str(columns["prompt_id"][i]), columns["prompt"][i] or ""), []).append(i)
    return found


def payload(sections: Sequence[Section]) -> dict[str, Any]:
    """Everything the browser shows, as JSON values; missing numbers are null."""
    labels = [(number, label) for number, section in enumerate(sections) for label in section.measured.labels]
    judges = list(dict.fromkeys(name for section in sections for record in section.records for name in record.judges))
    bases = [
        labels.index((number, section.measured.baseline)) if section.measured.baseline is not None else None
        for number, section in enumerate(sections)
    ]
    prompts: list[dict[str, Any]] = []
    for number, section in enumerate(sections):
        place = {label: at for at, (own, label) in enumerate(labels) if own == number}
        for (prompt_id, text), rows in prompts_of(section).items():
            if len(prompts) == MAX_PROMPTS:
                break
            shown = [_row(section.columns, i, place, judges) for i in rows]
            shown.sort(key=lambda row: (row["label"], row["seed"] or 0))
            entry = {"id": prompt_id, "prompt": text, "dataset": number, "order": len(prompts), "rows": shown}
            prompts.append(entry)
    names = [label if len(sections) == 1 else f"{label} ({sections[number].dataset})" for number, label in labels]
    colours = [colour_of(sections[number], label) for number, label in labels]
    shared = {"labels": names, "colours": colours, "baselines": bases, "judges": judges, "tie": TIE}
    return {**shared, "prompts": prompts}


def _row(columns: Mapping[str, Sequence], i: int, place: Mapping[str, int], judges: Sequence[str]) -> dict[str, Any]:
    judged = dict(zip(columns["judge_names"][i] or (), columns["judge_rewards"][i] or (), strict=False))
    return {
        "label": place[columns["label"][i]],
        "seed": columns["seed"][i],
        "reward": _short(columns["reward"][i]),
        "response": columns["response"][i],
        "error": None if columns["status"][i] == "ok" else columns["error"][i] or "error",
        "finish": columns["finish_reason"][i],
        "samples": columns["num_samples"][i],
        "tokens": columns["num_generated_tokens"][i],
        "failed": columns["num_failed_particles"][i],
        "judges": [_short(judged.get(name)) for name in judges],
        "seen": columns["num_samples_seen"][i] or [],
        **{key: [_short(value) for value in columns[name][i] or ()] for key, name in _TRACES.items()},
    }


def _short(value: float | None) -> float | None:
    """Five significant digits: enough to read, and half of the page's size."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def packed(value: Any) -> str:
    """JSON, gzipped, in base64: what `load` in page.js unpacks. The same bytes for the same value."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")
