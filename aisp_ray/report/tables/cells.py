"""What every table of a report is made of, whether it goes to a terminal, a file or the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aisp_ray.metrics.base import Estimate

NONE = "-"  # what is unknown
FEW = 20  # prompts below which an interval is too uncertain to colour a difference by it


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, whether it is "better" or "worse", and over how many columns it goes."""

    text: str
    tone: str = ""
    span: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """A table. The first column is set to the left; `chosen` is the row that stands out, if there is one."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    groups: tuple[str, ...] = ()  # per column but the first: what it belongs to, kept together on a narrow terminal
    chosen: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column on its way into a table: its head, its cell for each row, and what it belongs to."""

    head: str
    cells: tuple[Cell, ...]
    group: str = ""

    @property
    def empty(self) -> bool:
        return {cell.text for cell in self.cells} <= {NONE}


def table_of(title: str, columns: Sequence[Column], note: str = "", keep_empty: bool = False) -> Table:
    """A table from its columns; empty ones but the first are left out."""
    kept = [column for i, column in enumerate(columns) if not i or keep_empty or not column.empty]
    rows = tuple(zip(*(column.cells for column in kept), strict=True))
    return Table(title, tuple(c.head for c in kept), rows, note, tuple(c.group for c in kept[1:]))


def texts(head: str, values: Sequence[str], group: str = "") -> Column:
    return Column(head, tuple(map(Cell, values)), group)


def numbers(head: str, values: Sequence[float], form: str, group: str = "") -> Column:
    """Numbers in one format; what is not finite is unknown."""
    return texts(head, [format(value, form) if math.isfinite(value) else NONE for value in values], group)


def intervals(head: str, values: Sequence[Estimate], sign: bool = False, group: str = "") -> Column:
    """Means with intervals. sign: differences, with their sign, coloured where the interval leaves zero out."""
    cells = zip(with_intervals(values, sign), values, strict=True)
    return Column(head, tuple(Cell(text, tone_of(value) if sign else "") for text, value in cells), group)


def with_intervals(values: Sequence[Estimate], sign: bool = False) -> list[str]:
    """ "2.007 ± 0.071" texts with the same decimals, so that the narrowest interval shows two digits (at most four)."""
    widths = [value.half_width for value in values if math.isfinite(value.half_width) and value.half_width > 0]
    decimals = min(4, max(0, 1 - math.floor(math.log10(min(widths))))) if widths else 3
    found = []
    for value in values:
        mean = f"{value.mean:{'+' if sign else ''}z.{decimals}f}" if math.isfinite(value.mean) else NONE
        found.append(f"{mean} ± {value.half_width:.{decimals}f}" if math.isfinite(value.half_width) else mean)
    return found


def with_ends(value: Estimate, sign: bool = False) -> str:
    """ "1.554 [1.469, 1.633]"; no brackets where there is no interval."""
    if not math.isfinite(value.mean):
        return NONE
    text = f"{value.mean:{'+' if sign else ''}z.3f}"
    return f"{text} [{value.low:z.3f}, {value.high:z.3f}]" if math.isfinite(value.low) else text


def tone_of(difference: Estimate) -> str:
    """Coloured where the interval leaves zero out, and rests on enough prompts."""
    if difference.count < FEW:
        return ""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else ""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """ "1 prompt", "1,200 prompts"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
