"""The screen: lines that stay above two live ones on a terminal, or a line now and then in a log."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import time
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aisp_ray.errors import redacted, visible
from aisp_ray.pipeline.meter import Status

_LOG_WIDTH = 120  # of a table in a log
_LEAST_BAR = 8  # columns; narrower bars say nothing


class _Terminal(Console):
    """rich's console, without what would outlive a killed process or end one whose reader has gone."""

    def show_cursor(self, show: bool = True) -> bool:
        return False

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Screen:
    """Writes lines that stay and live ones to a terminal, or plain lines to a log."""

    def __init__(
        self,
        stream: TextIO | None = None,
        every: float = 15.0,
        as_json: bool = False,
        width: int | None = None,
    ):
        """every: seconds between two progress lines of a log. width: columns; None is the terminal's."""
        self.stream = stream or sys.stderr
        self.as_json = as_json
        self._console = _Terminal(file=self.stream, width=width, highlight=False, markup=False, emoji=False)
        self.live = self.stream.isatty() and not as_json and not self._console.is_dumb_terminal
        self.every = 0.5 if self.live else every
        self._region: Live | None = None

    def say(self, text: str, **fields: Any) -> None:
        """A line that stays. fields: what a JSON log carries beside it."""
        text = visible(redacted(text))
        if self.live:
            self._print(Text(text, style=_style_of(text), overflow="fold"))
            return
        if self.as_json:
            text = json.dumps({"time": round(time.time(), 3), "message": text, **fields}, default=str)
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: no failure of the run
            self.stream.write(text + "\n")
            self.stream.flush()

    def draw(self, drawing: RenderableType, **fields: Any) -> None:
        """A table or the like that stays."""
        if self.live:
            self._print(drawing)
        else:
            self.say(plain(drawing, _LOG_WIDTH), **fields)

    def show(self, status: Status) -> None:
        """How far it is: over the one before where there is a terminal."""
        if not self.live:
            self.say(status.line())
            return
        with contextlib.suppress(OSError, ValueError):
            if self._region is None:
                self._region = Live(console=self._console, auto_refresh=False, transient=True)
                self._region.start()
            self._region.update(live_lines(status, self._console.width), refresh=True)

    def close(self) -> None:
        """Take the live lines away."""
        region, self._region = self._region, None
        if region is not None:
            with contextlib.suppress(OSError, ValueError):
                region.stop()

    def _print(self, drawing: RenderableType) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._console.print(drawing)


def _style_of(text: str) -> str:
    return {"error": "bold red", "warning": "yellow"}.get(text.partition(":")[0], "")


def live_lines(status: Status, width: int) -> RenderableType:
    """A bar between what is done and the time, then as many facts as fit in a line, then what is wrong."""
    percent = "" if status.share is None else f"{status.share:.0%}"
    top = Table.grid(padding=(0, 1), expand=True)
    top.add_column(no_wrap=True)
    cells: list[RenderableType] = [Text(status.head, style="bold")]
    room = width - sum(cell_len(text) + 1 for text in (status.head, percent, status.time))
    bar = status.share is not None and room >= _LEAST_BAR
    if bar:
        top.add_column(ratio=1)
        cells.append(ProgressBar(total=1.0, completed=status.share or 0.0))
    top.add_column(no_wrap=True)
    top.add_column(no_wrap=True, justify="right", ratio=None if bar else 1)
    top.add_row(*cells, percent, status.time)
    lines: list[RenderableType] = [top]
    facts = ""
    for fact in status.facts:
        longer = f"{facts} · {fact}" if facts else fact
        if cell_len(longer) <= width:
            facts = longer
    lines += [Text(facts, style="dim", no_wrap=True)] if facts else []
    lines += [Text(status.trouble, style="yellow", no_wrap=True, overflow="ellipsis")] if status.trouble else []
    return Group(*lines)


def plain(drawing: RenderableType, width: int) -> str:
    """A drawing as text without colours."""
    target = io.StringIO()
    Console(file=target, width=width, no_color=True, force_terminal=False, highlight=False, _environ={}).print(drawing)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


class ScreenHandler(logging.Handler):
    """The package's log records on the screen, with their `extra` fields in a JSON log."""

    def __init__(self, screen: Screen):
        super().__init__(logging.INFO if screen.as_json else logging.WARNING)
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            name: getattr(record, name)
            for name in ("prompt_id", "method", "iteration", "pool", "kind")
            if hasattr(record, name)
        }
        self.screen.say(record.getMessage(), level=record.levelname, logger=record.name, **fields)
