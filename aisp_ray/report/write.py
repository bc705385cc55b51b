"""Writes a report: the page, the table in three forms, the figures as files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aisp_ray.metrics.base import TextMetric
from aisp_ray.report.figures import DRAWINGS, drawn, inline_svg
from aisp_ray.report.formats import format_table
from aisp_ray.report.measure import Section, sections
from aisp_ray.report.notices import notices
from aisp_ray.report.page import render
from aisp_ray.report.published import as_text, compare_first
from aisp_ray.report.rejudge import Rejudging, rejudge
from aisp_ray.report.rows import filesystem, label_map, output_list, read_json, read_rows
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

    @property
    def records(self) -> list[MethodSummary]:
        return [record for part in self.sections for record in part.records]

    @property
    def name(self) -> str:
        return self.to.rstrip("/").removesuffix("/report").rpartition("/")[2]


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
) -> Report:
    """Write the report of one or several outputs.

    `to` (default: <first output>/report) gets index.html, table.md, table.tex, table.csv, summary.json, figures/*.svg
    and figures/*.png, and published.md where an experiment has published figures. Works on the output of a job that
    still runs. Without matplotlib there are no figures.

    Raises:
        ValueError: an output has no rows, or a judge cannot score.
    """
    paths = output_list(outs)
    to = str(to).rstrip("/") if to is not None else f"{paths[0]}/report"
    rows = read_rows(paths)
    runs = {path: {name: read_json(path, name) for name in ("manifest.json", "summary.json")} for path in paths}
    if rejudging is not None and rejudging.judges:
        rows = rejudge(rows, {path: run["manifest.json"] for path, run in runs.items()}, rejudging)
    parts = sections(rows, label_map(paths, rows), baseline, seed, metrics)
    told = notices(parts, runs)
    shown = _write_figures(parts, to)
    records = [record for part in parts for record in part.records]
    for style, suffix in (("markdown", "md"), ("latex", "tex"), ("csv", "csv")):
        _write(to, f"table.{suffix}", format_table(records, style).encode())
    beside = [comparison for part in parts if (comparison := compare_first(part.records, runs))]
    if beside:
        _write(to, "published.md", "\n".join(as_text(comparison, markdown=True) for comparison in beside).encode())
    summary = {"table": summary_json(records), "notices": told}
    _write(to, "summary.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    page = _write(to, "index.html", render(parts, shown, told, runs).encode())
    return Report(page, to, parts, told, runs)


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
    return path if "://" not in to else f"{to.rstrip('/')}/{name}"
