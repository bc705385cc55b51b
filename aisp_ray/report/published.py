"""Published figures beside ours. An experiment's YAML holds them under `published`, the manifest keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aisp_ray.metrics.base import Estimate

if TYPE_CHECKING:
    from aisp_ray.report.table import MethodSummary

_DIGITS = {"reward": 2, "diversity": 3, "coherence": 3}
_OURS = {"diversity": "diversity_plus_one"}  # published diversities are in the form of the evaluations' own code


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table of texts: for each method and figure, what was published and what we found."""

    source: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    @property
    def note(self) -> str:
        return (
            f"Published: {self.source}; ± as published there. Ours: mean ± half the 95 % interval over prompts. Read "
            "them side by side only where policy, text, reward template and budget are the same."
        )


def compare(records: Sequence[MethodSummary], manifest: Mapping[str, Any]) -> Comparison | None:
    """The records of one dataset beside the figures of its manifest; None where nothing was published.

    A method with several lines in the table (other settings, a search's preset) has each of them here, by its label.
    """
    given = dict((manifest.get("config") or {}).get("published") or {})
    source = str(given.pop("source", "the source is not named"))
    ours = {method: [one for one in records if one.method.split(" ")[0] == method] for method in given}
    known = {method: figures for method, figures in given.items() if ours[method]}
    if not known:
        return None
    names = list(dict.fromkeys(name for figures in known.values() for name in figures if not name.endswith("_pm")))
    heads = ["method", *(f"{name} {whose}" for name in names for whose in ("published", "ours"))]
    lines = []
    for method, figures in known.items():
        for record in ours[method]:
            cells = [record.method]
            for name in names:
                theirs = Estimate() if name not in figures else _exactly(figures[name], figures.get(f"{name}_pm"))
                cells += [_cell(theirs, name), _cell(_ours(record, name), name)]
            lines.append(tuple(cells))
    return Comparison(source, tuple(heads), tuple(lines))


def compare_first(records: Sequence[MethodSummary], runs: Mapping[str, Mapping[str, Any]]) -> Comparison | None:
    """`compare` with the first output whose manifest holds published figures of these methods."""
    found = (compare(records, run.get("manifest.json") or {}) for run in runs.values())
    return next((comparison for comparison in found if comparison), None)


def as_text(comparison: Comparison, markdown: bool = False) -> str:
    """The comparison for a terminal or as Markdown."""
    if markdown:
        rule = "|".join(["---", *("---:" for _ in comparison.heads[1:])])
        rows = [" | ".join(line) for line in (comparison.heads, *comparison.lines)]
        return "\n".join([f"| {rows[0]} |", f"|{rule}|", *(f"| {row} |" for row in rows[1:]), "", comparison.note, ""])
    widths = [max(len(line[i]) for line in (comparison.heads, *comparison.lines)) for i in range(len(comparison.heads))]
    rows = []
    for line in (comparison.heads, *comparison.lines):
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        rows.append("  ".join([line[0].ljust(widths[0]), *rest]))
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:], comparison.note])


def _exactly(value: float, spread: float | None) -> Estimate:
    return Estimate(value, value - (spread or 0), value + (spread or 0))


def _ours(record: MethodSummary, name: str) -> Estimate:
    return record.reward if name == "reward" else record.metrics.get(_OURS.get(name, name), Estimate())


def _cell(value: Estimate, name: str) -> str:
    if not math.isfinite(value.mean):
        return "-"
    digits = _DIGITS.get(name, 1)
    half = value.half_width
    return f"{value.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) and half > 0 else "")
