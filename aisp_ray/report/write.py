"""Writes a report: the page, the table in three forms, the figures as files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aisp_ray.files import inside, split_query
from aisp_ray.metrics.base import TextMetric
from aisp_ray.report.budgets import budgets_markdown
from aisp_ray.report.figures import DRAWINGS, drawn, inline_svg
from aisp_ray.report.formats import format_table
from aisp_ray.report.measure import Section, sections
from aisp_ray.report.notices import notices
from aisp_ray.report.page import render
from aisp_ray.report.published import as_text, compare_first
from aisp_ray.report.rejudge import Rejudging, rejudge
from aisp_ray.report.rows import (
    filesystem,
    label_map,
    name_of,
    only,
    output_list,
    parquet_files,
    read_json,
    read_rows,
)
from aisp_ray.report.search_page import search_html, search_json, search_pictures, trials_csv
from aisp_ray.report.searches import Search, baseline_of, data_manifest, find_searches, read_compared, search_notices
from aisp_ray.report.table import DEFAULT_METRICS, MethodSummary, summary_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """A report that has been written."""

    page: str  # path or URI of index.html
    to: str  # the folder of everything
    sections: Sequence[Section]
    notices: Sequence[str]
    runs: Mapping[str, Mapping[str, Any]]  # output -> its manifest.json and summary.json
    searches: Sequence[Search] = ()  # of settings, by jobs/tune.py

    @property
    def records(self) -> list[MethodSummary]:
        return [record for part in self.sections for record in part.records]

    @property
    def name(self) -> str:
        """The name of the output where the report lies in it, else that of its own folder."""
        path = split_query(self.to)[0]
        return name_of(path.removesuffix("/report"))


def write_report(outs: str | Sequence[str], to: str | None = None, baseline: str = "best_of_n") -> str:
    """`make_report` with the usual settings; returns the page's path."""
    return make_report(outs, to, baseline).page


def make_report(
    outs: str | Sequence[str],
    to: str | None = None,
    baseline: str = "best_of_n",
    seed: int = 0,
    metrics: Mapping[str, TextMetric] = DEFAULT_METRICS,
    rejudging: Rejudging | None = None,
    methods: Sequence[str] = (),
) -> Report:
    """Write the report of one or several outputs, of evaluations and of searches.

    `to` (default: <first output>/report) gets index.html, table.md, table.tex, table.csv, budgets.md, summary.json,
    figures/*.svg and figures/*.png, published.md where an experiment has published figures, and trials.csv of a search.
    Works on the output of a job that still runs. Without matplotlib there are no figures. methods: only their rows.

    Raises:
        ValueError: an output has no rows and no trials, none of a method of `methods`, or a judge cannot score.
    """
    paths = output_list(outs)
    to = "".join(split_query(str(to))) if to is not None else inside(paths[0], "report")
    runs = {path: {name: read_json(path, name) for name in ("manifest.json", "summary.json")} for path in paths}
    searches = find_searches(paths)
    evaluated = [path for path in paths if path not in searches or parquet_files(path, "rows")[1]]
    parts: list[Section] = []
    if methods and not evaluated:
        raise ValueError(f"methods={list(methods)} has no effect: it chooses rows of evaluations, and out holds none")
    if evaluated:
        rows = only(read_rows(evaluated), methods)
        if rejudging is not None and rejudging.judges:
            rows = rejudge(rows, {path: runs[path]["manifest.json"] for path in evaluated}, rejudging)
        parts += sections(rows, label_map(evaluated, rows), baseline, seed, metrics)
    if evaluated and rejudging is not None:
        rejudging = replace(rejudging, curves=False)  # a search keeps no particles
    parts += _compared(list(searches.values()), baseline, seed, metrics, rejudging)
    told = [text for search in searches.values() for text in search_notices(search)] + notices(parts, runs)
    shown = _write_figures(parts, to)
    found = _write_searches(list(searches.values()), to)
    records = [record for part in parts for record in part.records]
    for style, suffix in (("markdown", "md"), ("latex", "tex"), ("csv", "csv")) if records else ():
        _write(to, f"table.{suffix}", format_table(records, style).encode())
    spent = [budgets_markdown(part.budgets, part.measured.baseline, part.dataset) for part in parts]
    if any(spent):
        _write(to, "budgets.md", "\n".join(filter(None, spent)).encode())
    beside = [comparison for part in parts if (comparison := compare_first(part.records, runs))]
    if beside:
        _write(to, "published.md", "\n".join(as_text(comparison, markdown=True) for comparison in beside).encode())
    summary = {"table": summary_json(records), "searches": list(map(search_json, searches.values())), "notices": told}
    _write(to, "summary.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    page = _write(to, "index.html", render(parts, shown, told, runs, found).encode())
    return Report(page, to, parts, told, runs, list(searches.values()))


def _compared(
    searches: Sequence[Search],
    baseline: str,
    seed: int,
    metrics: Mapping[str, TextMetric],
    rejudging: Rejudging | None,
) -> list[Section]:
    """The searches' presets and chosen settings, side by side on the prompts that they share."""
    rows = read_compared(searches)
    if rows is None:
        return []
    base = baseline_of(rows["label"].to_pylist(), rows["method"].to_pylist(), baseline)
    if rejudging is not None and rejudging.judges:
        manifests = {search.out: data_manifest(search) for search in searches}
        rows = rejudge(rows, manifests, replace(rejudging, baseline=base))
    return [replace(part, of_search=True) for part in sections(rows, {}, base, seed, metrics)]


def _write_searches(searches: Sequence[Search], to: str) -> dict[str, str]:
    """Trials and figures as files, and each search's part of the page by its name."""
    parts: dict[str, str] = {}
    for number, search in enumerate(searches):
        prefix = f"search{number}_" if len(searches) > 1 else "search_"
        _write(to, f"{prefix.removeprefix('search_')}trials.csv", trials_csv(search).encode())
        try:
            pictures = search_pictures(search, prefix)
        except ImportError:
            log.warning("no figures: matplotlib is not installed (pip install 'aisp-ray[report]')")
            pictures = {}
        for name, (picture, _) in pictures.items():
            _write(to, f"figures/{prefix}{name}.svg", picture.svg.encode())
            _write(to, f"figures/{prefix}{name}.png", picture.png)
        shown = [(inline_svg(each.svg, f"{prefix}{name}"), text) for name, (each, text) in pictures.items()]
        name = search.name if search.name not in parts else f"{search.name} in {search.out}"
        parts[name] = search_html(search, shown)
    return parts


def _write_figures(parts: Sequence[Section], to: str) -> dict[str, list[tuple[str, str]]]:
    """Figures as files, and (inline SVG, caption) per dataset; empty without matplotlib."""
    shown: dict[str, list[tuple[str, str]]] = {}
    for number, part in enumerate(parts):
        prefix = f"{number}_" if len(parts) > 1 else ""
        try:
            pictures = drawn(part.measured, prefix)
        except ImportError:
            log.warning("no figures: matplotlib is not installed (pip install 'aisp-ray[report]')")
            return {}
        captions = {drawing.name: drawing.caption for drawing in DRAWINGS}
        for name, picture in pictures.items():
            _write(to, f"figures/{prefix}{name}.svg", picture.svg.encode())
            _write(to, f"figures/{prefix}{name}.png", picture.png)
        shown[part.dataset] = [
            (inline_svg(picture.svg, f"{prefix}{name}"), captions[name]) for name, picture in pictures.items()
        ]
    return shown


def _write(to: str, name: str, content: bytes) -> str:
    """Write one file below `to`, a folder or URI; returns its path."""
    system, base = filesystem(to)
    path = f"{base}/{name}"
    system.create_dir(path.rpartition("/")[0], recursive=True)
    with system.open_output_stream(path) as file:
        file.write(content)
    return path if "://" not in to else inside(to, name)
