"""Makes a report: reads outputs, measures once for terminal and page, and writes the files."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aisp_ray.errors import redacted, redacted_values, visible
from aisp_ray.files import MANIFEST, ROWS, SUMMARY, Output, inside, split_query
from aisp_ray.metrics.base import TextMetric
from aisp_ray.pipeline.showcase import first_whole
from aisp_ray.report.figures import evaluation, search
from aisp_ray.report.figures.draw import Picture, pictures
from aisp_ray.report.measure import Section, sections
from aisp_ray.report.notices import notices
from aisp_ray.report.page.render import render
from aisp_ray.report.rejudge import Rejudging, rejudge
from aisp_ray.report.rows import name_of, only, output_list, read_json, read_labelled
from aisp_ray.report.searches import (
    Search,
    baseline_of,
    data_manifest,
    find_searches,
    read_compared,
    search_json,
    search_notices,
)
from aisp_ray.report.summary import DEFAULT_METRICS, MethodSummary, summary_json
from aisp_ray.report.tables.evaluation import budget_table, format_table, how_to_read, published_first, result_table
from aisp_ray.report.tables.frontier import frontier_table
from aisp_ray.report.tables.render import csv_text, markdown, rendered, text
from aisp_ray.report.tables.search import short_trials_table
from aisp_ray.tune.heldout import verdict


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured, and where it is written."""

    to: str  # the folder of everything
    sections: Sequence[Section]
    notices: Sequence[str]
    runs: Mapping[str, Mapping[str, Any]]  # output -> its manifest.json and summary.json
    searches: Sequence[Search] = ()  # of settings, by jobs/tune.py

    @property
    def page(self) -> str:
        """Path or URI of index.html."""
        return inside(self.to, "index.html")

    @property
    def records(self) -> list[MethodSummary]:
        return [record for part in self.sections for record in part.records]

    @property
    def name(self) -> str:
        """The name of the output where the report lies in it, else that of its own folder."""
        return name_of(split_query(self.to)[0].removesuffix("/report"))


def make_report(outs: str | Sequence[str], to: str | None = None, **how: Any) -> Report:
    """`read_report` and `write_report`."""
    report = read_report(outs, to, **how)
    write_report(report)
    return report


def read_report(
    outs: str | Sequence[str],
    to: str | None = None,
    baseline: str = "best_of_n",
    seed: int = 0,
    metrics: Mapping[str, TextMetric] = DEFAULT_METRICS,
    rejudging: Rejudging | None = None,
    methods: Sequence[str] = (),
) -> Report:
    """Measure one or several outputs, of evaluations and of searches, also of a job that still runs.

    to: where `write_report` puts it, by default <first output>/report. methods: only their rows.

    Raises:
        ValueError: an output has no rows and no trials, none of a method of `methods`, a file cannot be read, or a
            judge cannot score.
    """
    paths = output_list(outs)
    to = "".join(split_query(str(to))) if to is not None else inside(paths[0], "report")
    runs = {path: {name: read_json(path, name) for name in (MANIFEST, SUMMARY)} for path in paths}
    searches = find_searches(paths)
    evaluated = [path for path in paths if path not in searches or Output(path).parquet_files(ROWS)]
    parts: list[Section] = []
    if methods and not evaluated:
        raise ValueError(f"methods={list(methods)} has no effect: it chooses rows of evaluations, and out holds none")
    if evaluated:
        rows, labels = read_labelled(evaluated)
        rows = only(rows, methods)
        if rejudging is not None and rejudging.judges:
            rows = rejudge(rows, {path: runs[path][MANIFEST] for path in evaluated}, rejudging)
        parts += sections(rows, labels, baseline, seed, metrics)
        if rejudging is not None:
            rejudging = replace(rejudging, curves=False)  # a search keeps no particles
    rows = read_compared(list(searches.values()))
    if rows is not None:
        base = baseline_of(rows["label"].to_pylist(), rows["method"].to_pylist(), baseline)
        if rejudging is not None and rejudging.judges:
            manifests = {each.out: data_manifest(each) for each in searches.values()}
            rows = rejudge(rows, manifests, replace(rejudging, baseline=base))
        parts += sections(rows, {}, base, seed, metrics, of_search=True)
    told = [sentence for each in searches.values() for sentence in search_notices(each)] + notices(parts, runs)
    return Report(to, parts, told, runs, list(searches.values()))


# ---------------------------------------------------------------- files


def write_report(report: Report) -> None:
    """Write index.html, table.md, table.tex, table.csv, budgets.md, frontier.md where there are judges, summary.json,
    figures/*.svg and figures/*.png, published.md where an experiment has published figures, and trials.csv of a search.

    Without matplotlib there are no figures.
    """
    target = Output(report.to, unfinished=".")
    for style, suffix in (("markdown", "md"), ("latex", "tex"), ("csv", "csv")) if report.records else ():
        target.write(f"table.{suffix}", redacted(format_table(report.records, style)).encode())
    budgets = [replace(table, title=part.dataset) for part in report.sections if (table := budget_table(part))]
    published = [table for part in report.sections if (table := published_first(part, report.runs))]
    frontiers = [
        replace(table, title=part.dataset) for part in report.sections if (table := frontier_table(part, report.runs))
    ]
    for name, tables in (("budgets.md", budgets), ("published.md", published), ("frontier.md", frontiers)):
        if tables:
            target.write(name, redacted("\n".join(map(markdown, tables))).encode())
    many = len(report.searches) > 1
    for number, each in enumerate(report.searches):
        names = each.table.column_names if each.table is not None else []
        target.write(
            f"search{number}_trials.csv" if many else "trials.csv", redacted(csv_text(names, each.trials)).encode()
        )
    summary = {
        "table": summary_json(report.records),
        "searches": list(map(search_json, report.searches)),
        "notices": report.notices,
    }
    target.write("summary.json", (json.dumps(redacted_values(summary), indent=1, ensure_ascii=False) + "\n").encode())
    named: dict[str, Search] = {}
    for each in report.searches:
        named[each.name if each.name not in named else f"{each.name} in {each.out}"] = each
    drawn = _write_figures(report, named, target)
    page = render(report.sections, named, drawn, report.notices, report.runs)
    target.write("index.html", redacted(page).encode())


def _write_figures(report: Report, named: Mapping[str, Search], target: Output) -> dict[str, list[Picture]]:
    """Figures as files; by the name of their dataset or search those that could be drawn."""
    found: dict[str, list[Picture]] = {}
    parts = [(part.dataset, "", evaluation.panels(part)) for part in report.sections]
    parts += [(name, "search", search.panels_of(each)) for name, each in named.items()]
    kinds = [kind for _, kind, _ in parts]
    for number, (name, kind, panels) in enumerate(parts):
        place = str(kinds[:number].count(kind)) if kinds.count(kind) > 1 else ""
        prefix = f"{kind}{place}_" if kind or place else ""
        drawn = pictures(panels)
        if drawn is not None:
            found[name] = drawn
        for picture in drawn or ():
            target.write(f"figures/{prefix}{picture.name}.svg", picture.svg.encode())
            target.write(f"figures/{prefix}{picture.name}.png", picture.png)
    return found


# ---------------------------------------------------------------- the terminal

_MOST_TRIALS = 12  # of a search that a terminal shows


def report_text(report: Report) -> str:
    """The report for a terminal: searches, results, one prompt's responses, and what to know before quoting them."""
    from rich.console import Console

    width = Console().width
    parts = [line for each in report.searches for line in _search_text(each, width)]
    for section in report.sections:
        parts.append(text(result_table(section.records), width))
        if table := published_first(section, report.runs):
            parts.append(text(table, width))
        if sample := first_whole(section.columns, section.labels):
            parts.append(rendered(sample.drawing(), width).lstrip("\n"))
    if report.records:
        parts.append(_listed("Where to look:", how_to_read(report.records), width))
    if report.notices:
        parts.append(_listed("Before you quote this:", report.notices, width))
    return "\n".join(parts)


def _listed(head: str, sentences: Sequence[str], width: int) -> str:
    wrapped = [
        textwrap.fill(visible(each), width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        for each in sentences
    ]
    return "\n".join([head, *wrapped, ""])


def _search_text(each: Search, width: int) -> list[str]:
    """The best trials and what became of the choice."""
    lines = [textwrap.fill(f"search of {each.name} ({each.out})", width)]
    if each.trials:
        lines.append(text(short_trials_table(each, _MOST_TRIALS), width))
    tuning, heldout = (each.confirmation(part) for part in ("tuning", "heldout"))
    if tuning is not None and heldout is not None:
        lines.append(textwrap.fill(verdict(tuning, heldout), width) + "\n")
    return lines
