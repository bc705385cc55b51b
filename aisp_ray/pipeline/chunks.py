"""Which rows are there, which are wanted, and when a part file can be written.

chunk = ordinal // chunk_rows. A chunk of a method is complete once the stream has moved past it (or ended) and each of
its prompts has a row. Rows that an earlier run committed are kept; a part is rewritten only if rows were added to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Part = tuple[str, int]  # method, chunk


@dataclass(frozen=True)
class Complete:
    """A part to write: its new rows by ordinal. What else its file holds stays."""

    part: Part
    rows: tuple[Row, ...]


class Chunks:
    """The book of a run's rows. One thread uses it."""

    def __init__(self, methods: Sequence[str], chunk_rows: int):
        self.methods = tuple(methods)
        self.chunk_rows = chunk_rows
        self._committed: dict[Part, frozenset[int]] = {}  # in a file, from an earlier run
        self._rows: defaultdict[Part, dict[int, Row]] = defaultdict(dict)  # finished, in no file yet
        self._missing: defaultdict[Part, int] = defaultdict(int)  # expected, not finished
        self._writing: dict[Part, tuple[Row, ...]] = {}
        self._sealed_below = 0
        self.ended = False

    def chunk(self, ordinal: int) -> int:
        return ordinal // self.chunk_rows

    def keep(self, part: Part, ordinals: Iterable[int]) -> None:
        """These rows of an earlier run are in the part's file and stay."""
        self._committed[part] = frozenset(ordinals)

    def restore(self, row: Row) -> bool:
        """A row that an earlier run finished and did not commit. Before its prompt is expected. False: not needed."""
        part = (row["method"], self.chunk(row["ordinal"]))
        if part[0] not in self.methods or self.is_committed(row["ordinal"], row["method"]):
            return False
        self._rows[part][row["ordinal"]] = row
        return True

    def is_committed(self, ordinal: int, method: str) -> bool:
        """Whether an earlier run left this row in a file, and it stays."""
        return ordinal in self._committed.get((method, self.chunk(ordinal)), ())

    def expect(self, ordinal: int) -> list[str]:
        """The stream has this prompt, in rising order: the methods whose rows are still to be made for it."""
        chunk = self.chunk(ordinal)
        self._sealed_below = chunk
        wanted = []
        for method in self.methods:
            part = (method, chunk)
            if not self.is_committed(ordinal, method) and ordinal not in self._rows.get(part, ()):
                self._missing[part] += 1
                wanted.append(method)
        return wanted

    def add(self, row: Row) -> None:
        """A finished row that `expect` asked for."""
        part = (row["method"], self.chunk(row["ordinal"]))
        self._rows[part][row["ordinal"]] = row
        self._missing[part] -= 1

    def end(self) -> None:
        """The stream has ended."""
        self.ended = True

    def take_complete(self) -> list[Complete]:
        """The parts to write now, each once. `written` says that one is there."""
        ready = [part for part in self._rows if self._is_complete(part)]
        taken = []
        for part in ready:
            rows = self._rows.pop(part)
            self._missing.pop(part, None)
            self._writing[part] = tuple(rows[ordinal] for ordinal in sorted(rows))
            taken.append(Complete(part, self._writing[part]))
        return taken

    def written(self, part: Part) -> None:
        del self._writing[part]

    def pending_rows(self) -> list[Row]:
        """Finished rows that are in no file yet."""
        waiting = [row for rows in self._rows.values() for row in rows.values()]
        return waiting + [row for rows in self._writing.values() for row in rows]

    def _is_complete(self, part: Part) -> bool:
        sealed = self.ended or part[1] < self._sealed_below
        return sealed and bool(self._rows[part]) and self._missing[part] == 0
