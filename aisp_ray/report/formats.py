"""The table as text, Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aisp_ray.metrics.base import NUM_RESAMPLES, Estimate

if TYPE_CHECKING:
    from aisp_ray.metrics.paired import Paired
    from aisp_ray.report.table import MethodSummary

STYLES = ("text", "markdown", "latex", "csv")
WIDTH = 120  # columns of a terminal; a wider text table goes on below, its method column repeated
POLICY_SECONDS, REWARD_SECONDS = "policy s", "reward s"
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its head, and its cell for each record. The first one is set to the left."""

    head: str
    cells: tuple[str, ...]


def format_table(records: Sequence[MethodSummary], style: str = "text") -> str:
    """The table in one of `STYLES`. `text` is for a terminal and keeps within `WIDTH`; `csv` has every number.

    Raises:
        ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; it is one of {', '.join(STYLES)}")
    if style == "csv":
        return _csv(records)
    render = {"text": _text, "markdown": _markdown, "latex": _latex}[style]
    parts = []
    for dataset in dict.fromkeys(record.dataset for record in records):
        chosen = [record for record in records if record.dataset == dataset]
        parts.append(render(columns_of(chosen), footnote(chosen), dataset))
    return "\n".join(parts)


def columns_of(records: Sequence[MethodSummary]) -> list[Column]:
    """The columns that a paper's table has, for the records of one dataset; an empty column is left out."""
    difference = [record.paired.difference if record.paired else Estimate() for record in records]
    columns = [
        Column("method", tuple(record.method for record in records)),
        Column("prompts", tuple(_prompts(record) for record in records)),
        Column("reward", with_intervals([record.reward for record in records])),
    ]
    if any(record.paired for record in records):
        columns += [
            Column(f"vs {records[0].baseline}", with_intervals(difference, sign=True)),
            Column("win/tie/loss", tuple(win_tie_loss(record.paired) for record in records)),
        ]
    for name in dict.fromkeys(name for record in records for name in record.judges):
        head = name if "judge" in name else f"judge {name}"
        columns.append(Column(head, with_intervals([r.judges.get(name, Estimate()) for r in records])))
    columns += [
        Column("samples", tuple(_count(record.num_samples) for record in records)),
        Column("tokens", tuple(_count(record.num_generated_tokens) for record in records)),
        Column("seconds", _numbers(records, lambda record: record.wall_seconds)),
        Column(POLICY_SECONDS, _numbers(records, lambda record: record.policy_seconds)),
        Column(REWARD_SECONDS, _numbers(records, lambda record: record.reward_seconds)),
    ]
    for name in records[0].metrics:
        if name != "diversity_plus_one":  # it is in the CSV; two diversities side by side would be read as a mistake
            columns.append(Column(name, with_intervals([r.metrics.get(name, Estimate()) for r in records])))
    return [column for column in columns if set(column.cells) != {_NONE}]


def with_intervals(values: Sequence[Estimate], sign: bool = False) -> tuple[str, ...]:
    """ "2.007 ± 0.071" cells with the same decimals, so that the narrowest interval shows two digits (at most four)."""
    widths = [value.half_width for value in values if math.isfinite(value.half_width) and value.half_width > 0]
    decimals = min(4, max(0, 1 - math.floor(math.log10(min(widths))))) if widths else 3
    cells = []
    for value in values:
        if not math.isfinite(value.mean):
            cells.append(_NONE)
            continue
        mean = f"{value.mean:{'+' if sign else ''}z.{decimals}f}"
        known = math.isfinite(value.half_width)
        cells.append(f"{mean} ± {value.half_width:.{decimals}f}" if known else mean)
    return tuple(cells)


def footnote(records: Sequence[MethodSummary]) -> str:
    """One line that says what ± and the comparison are."""
    first = records[0]
    seeds = max(record.num_seeds for record in records)
    means = f"means over prompts ({seeds} seeds averaged first)" if seeds > 1 else "means over prompts"
    text = f"{means} ± half the 95 % percentile bootstrap interval over prompts ({NUM_RESAMPLES:,} resamples)"
    if any(record.paired for record in records):
        text += (
            f"; vs {first.baseline}: mean of paired differences on shared prompts, win/tie/loss counts those prompts"
        )
    elif len(records) > 1:
        text += f"; no rows of the baseline {first.baseline}, so no differences"
    return f"{text}; samples, tokens and seconds per prompt."


def _prompts(record: MethodSummary) -> str:
    if record.num_errors:
        return f"{record.num_prompts} ({record.num_errors} err)"
    return str(record.num_prompts)


def win_tie_loss(pair: Paired | None) -> str:
    """ "12/3/5" prompts; - where no prompt is shared."""
    return f"{pair.wins}/{pair.ties}/{pair.losses}" if pair and pair.difference.count else _NONE


def _count(value: float) -> str:
    if not math.isfinite(value):
        return _NONE
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def _numbers(records: Sequence[MethodSummary], value: Callable[[MethodSummary], float]) -> tuple[str, ...]:
    """Seconds with three significant digits, - where unknown."""
    cells = []
    for number in map(value, records):
        if not math.isfinite(number):
            cells.append(_NONE)
        elif number >= 100:
            cells.append(f"{number:,.0f}")
        else:
            cells.append(f"{number:.{2 if number < 10 else 1}f}")
    return tuple(cells)


def _text(columns: list[Column], note: str, dataset: str) -> str:
    widths = [max(len(cell) for cell in (column.head, *column.cells)) for column in columns]
    blocks: list[list[int]] = [[]]
    for i in range(1, len(columns)):
        used = widths[0] + sum(widths[j] + 2 for j in blocks[-1])
        if blocks[-1] and used + widths[i] + 2 > WIDTH:
            blocks.append([])
        blocks[-1].append(i)
    lines = [f"{dataset}"]
    for block in blocks:
        rows = [tuple(columns[i].head for i in (0, *block))]
        rows += list(zip(*(columns[i].cells for i in (0, *block)), strict=True))
        for at, row in enumerate(rows):
            cells = [row[0].ljust(widths[0]), *(cell.rjust(widths[i]) for cell, i in zip(row[1:], block, strict=True))]
            lines.append("  ".join(cells).rstrip())
            if at == 0:
                lines.append("-" * (widths[0] + sum(widths[i] + 2 for i in block)))
        lines.append("")
    return "\n".join([*lines[:-1], *textwrap.wrap(note, WIDTH), ""])


def _markdown(columns: list[Column], note: str, dataset: str) -> str:
    escape = lambda cell: cell.replace("|", "\\|")  # noqa: E731
    lines = [f"**{dataset}**", "", "| " + " | ".join(escape(column.head) for column in columns) + " |"]
    lines.append("|---|" + "---:|" * (len(columns) - 1))
    for row in zip(*(column.cells for column in columns), strict=True):
        lines.append("| " + " | ".join(map(escape, row)) + " |")
    return "\n".join([*lines, "", note, ""])


_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$"}


def _latex(columns: list[Column], note: str, dataset: str) -> str:
    """A booktabs table (it needs \\usepackage{booktabs}), the footnote as its caption."""
    lines = [r"\begin{table}", r"\centering", r"\small"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(_latex_text(column.head) for column in columns) + r" \\", r"\midrule"]
    for row in zip(*(column.cells for column in columns), strict=True):
        lines.append(" & ".join([_latex_text(row[0]), *map(_latex_number, row[1:])]) + r" \\")
    caption = _latex_text(f"{dataset}: {note}")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""])


def _latex_text(cell: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in cell)


def _latex_number(cell: str) -> str:
    """A number in math mode, so that its minus is one; - is an en dash; anything else is text."""
    if cell == _NONE:
        return "--"
    if re.fullmatch(r"[-+]?[\d,.]+( ± [\d.]+)?", cell):
        return "$" + cell.replace(",", "{,}").replace("±", r"\pm") + "$"
    return _latex_text(cell)


def _csv(records: Sequence[MethodSummary]) -> str:
    """Every number at full precision; unknown is an empty cell."""
    columns: dict[str, Callable[[MethodSummary], object]] = {
        name: lambda record, name=name: getattr(record, name)
        for name in ("dataset", "method", "num_prompts", "num_rows", "num_errors", "num_seeds")
    }
    columns |= _estimate_columns("reward", lambda record: record.reward)
    columns["baseline"] = lambda record: record.baseline
    columns |= _paired_columns("", lambda record: record.paired)
    for name in ("num_samples", "num_generated_tokens", "policy_seconds", "reward_seconds", "wall_seconds"):
        columns[name] = lambda record, name=name: getattr(record, name)
    for name in dict.fromkeys(name for record in records for name in record.metrics):
        columns |= _estimate_columns(name, lambda record, name=name: record.metrics.get(name))
    for name in dict.fromkeys(name for record in records for name in record.judges):
        columns |= _estimate_columns(f"judge_{name}", lambda record, name=name: record.judges.get(name))
        columns |= _paired_columns(f"judge_{name}_", lambda record, name=name: record.judges_paired.get(name))
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        writer.writerow([_cell(get(record)) for get in columns.values()])
    return target.getvalue()


def _estimate_columns(name: str, get: Callable[[MethodSummary], Estimate | None]) -> dict[str, Callable]:
    def part(record: MethodSummary, key: str) -> object:
        value = get(record)
        return getattr(value, key) if value is not None else None

    ends = {"mean": "", "low": "_low", "high": "_high", "count": "_count"}
    return {name + end: (lambda record, key=key: part(record, key)) for key, end in ends.items()}


def _paired_columns(prefix: str, get: Callable[[MethodSummary], Paired | None]) -> dict[str, Callable]:
    def part(record: MethodSummary, key: str) -> object:
        pair = get(record)
        counted = pair is not None and (pair.difference.count or key == "difference")  # no shared prompt: no record
        return getattr(pair, key) if counted else None

    columns = _estimate_columns(f"{prefix}difference", lambda record: part(record, "difference"))
    names = ("wins", "ties", "losses", "win_rate")
    return columns | {prefix + name: (lambda record, name=name: part(record, name)) for name in names}


def _cell(value: object) -> object:
    unknown = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if unknown else value
