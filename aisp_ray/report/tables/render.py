"""Tables as text for a terminal, as Markdown, LaTeX and CSV. The page's template draws them as HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aisp_ray.errors import visible
from aisp_ray.report.tables.cells import NONE, Table

_GAP = 2  # spaces between two columns
_TONES = {"better": "green", "worse": "red", "": ""}


def text(table: Table, width: int | None = None, colour: bool | None = None) -> str:
    """For a terminal: no line is wider than it. What does not fit goes below, columns of one group together.

    width, colour: None takes those of the terminal; without one, 80 columns (or COLUMNS) and no colour.
    """
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    terminal = Console()
    width = terminal.width if width is None else width
    colour = terminal.is_terminal and not terminal.no_color if colour is None else colour
    target = io.StringIO()
    console = Console(file=target, width=width, force_terminal=colour, no_color=not colour, highlight=False)
    if table.title:
        console.print(Text(visible(table.title), style="bold"))
    widths = _widths(table, width)
    for block in _blocks(table, widths, width):
        grid = Grid(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for i in block:
            grid.add_column(
                Text(visible(table.heads[i])), width=widths[i], justify="right" if i else "left", overflow="fold"
            )
        for k, row in enumerate(table.rows):
            cells = [Text(visible(row[i].text), style=_TONES[row[i].tone]) for i in block if i < len(row)]
            grid.add_row(*cells, style="bold" if k == table.chosen else "")
        console.print(grid)
        console.print()
    if table.note:
        console.print(Text(visible(table.note), style="dim"))
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


def rendered(drawing: Any, width: int) -> str:
    """Any rich drawing for a terminal that is `width` columns wide, in colour where there is one."""
    from rich.console import Console

    terminal = Console()
    colour = terminal.is_terminal and not terminal.no_color
    target = io.StringIO()
    Console(file=target, width=width, force_terminal=colour, no_color=not colour, highlight=False).print(drawing)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


def _widths(table: Table, width: int) -> list[int]:
    """Columns hold their longest cell and the longest word of their head; only the first may be folded."""
    found = []
    for i, head in enumerate(table.heads):
        cells = [len(visible(row[i].text)) for row in table.rows if i < len(row) and row[i].span == 1]
        found.append(max([*cells, *(len(word) for word in visible(head).split(" "))]))
    return [min(found[0], max(12, width * 3 // 10)), *(min(each, width // 2) for each in found[1:])]


def _blocks(table: Table, widths: Sequence[int], width: int) -> list[list[int]]:
    """Columns that stand side by side, the first in every block."""
    groups = table.groups or tuple(str(i) for i in range(len(table.heads) - 1))
    blocks: list[list[int]] = [[0]]
    for group in dict.fromkeys(groups):
        members = [i + 1 for i, name in enumerate(groups) if name == group]
        room = next((block for block in blocks if _span(widths, [*block, *members]) <= width), None)
        if room is not None:
            room += members
            continue
        for i in members:  # too many for the room that is left
            if len(blocks[-1]) > 1 and (i == members[0] or _span(widths, [*blocks[-1], i]) > width):
                blocks.append([0])
            blocks[-1].append(i)
    return blocks


def _span(widths: Sequence[int], block: Sequence[int]) -> int:
    return sum(widths[i] for i in block) + _GAP * (len(block) - 1)


def markdown(table: Table) -> str:
    escape = lambda words: visible(words).replace("|", "\\|").replace("\n", " ")  # noqa: E731
    rows = [[cell.text for cell in row for _ in range(cell.span)] for row in table.rows]
    lines = ["| " + " | ".join(map(escape, row)) + " |" for row in (table.heads, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(table.heads) - 1))
    return "\n".join([f"**{table.title}**", "", *lines, "", table.note, ""])


_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$"}


def latex(table: Table) -> str:
    """A booktabs table (it needs \\usepackage{booktabs}), the note as its caption."""
    rows = [[_latex_text(row[0].text), *(_latex_number(cell.text) for cell in row[1:])] for row in table.rows]
    lines = [r"\begin{table}", r"\centering", r"\small"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_latex_text, table.heads)) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    caption = _latex_text(f"{table.title}: {table.note}")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""])


def _latex_text(words: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in visible(words))


def _latex_number(words: str) -> str:
    """A number in math mode, so that its minus is one; - is an en dash; anything else is text."""
    if words == NONE:
        return "--"
    if re.fullmatch(r"[-+]?[\d,.]+( ± [\d.]+)?", words):
        return "$" + words.replace(",", "{,}").replace("±", r"\pm") + "$"
    return _latex_text(words)


def csv_text(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Values at full precision; None is an empty cell. A spreadsheet takes no text here for a formula."""
    target = io.StringIO()
    writer = csv.DictWriter(target, names, lineterminator="\n", extrasaction="raise")
    writer.writerow({name: _harmless(name) for name in names})
    for row in rows:
        writer.writerow({name: _harmless(row.get(name)) for name in names})
    return target.getvalue()


def _harmless(value: Any) -> Any:
    """The text without control characters; an apostrophe before one that begins like a formula and is no number."""
    if not isinstance(value, str):
        return value
    shown = visible(value)  # the writer leaves \r without quotes, and readers then end the row there
    if not shown.startswith(("=", "+", "-", "@", "\t")):
        return shown
    try:
        float(value)
    except ValueError:
        return f"'{shown}"
    return value
