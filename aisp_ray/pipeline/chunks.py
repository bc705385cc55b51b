"""Which rows are there, which are wanted, and which part files are to be written.

chunk = ordinal // chunk_rows. A chunk of a method is complete once the stream has moved past it (or ended) and each of
its prompts has a row. Before that its part may be written with the rows that are there, as often as rows were added.
Rows that an earlier run committed are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aisp_ray.pipeline.shards import ALL, RunShard

Row = Mapping[str, Any]
Part = tuple[str, int]  # method, chunk


@dataclass(frozen=True)
class Batch:
    """Rows to add to a part's file, by ordinal. What else the file holds stays."""

    part: Part
    rows: tuple[Row, ...]
    complete: bool  # none will follow


class Chunks:
    """The book of a run's rows. One thread uses it."""

    def __init__(self, methods: Sequence[str], chunk_rows: int, shard: RunShard = ALL):
        self.shard = shard
        self.methods = tuple(methods)
        self.chunk_rows = chunk_rows
        self._earlier: defaultdict[Part, set[int]] = defaultdict(set)  # made by an earlier run, in a file or not
        self._rows: defaultdict[Part, dict[int, Row]] = defaultdict(dict)  # finished, in no file yet
        self._missing: defaultdict[Part, int] = defaultdict(int)  # expected, not finished
        self._writing: dict[Part, Batch] = {}
        self._sealed_below = 0
        self.ended = False

    def chunk(self, ordinal: int) -> int:
        return ordinal // self.chunk_rows

    def keep(self, part: Part, ordinals: Iterable[int]) -> None:
        """These rows of an earlier run are in the part's file and stay."""
        self._earlier[part].update(ordinals)

    def restore(self, row: Row) -> bool:
        """A row that an earlier run finished and did not commit. Before its prompt is expected. False: not needed."""
        part = (row["method"], self.chunk(row["ordinal"]))
        if part[0] not in self.methods or not self.lacks(row["ordinal"], row["method"]):
            return False
        self._rows[part][row["ordinal"]] = row
        self._earlier[part].add(row["ordinal"])  # also once it is flushed, which may be before its prompt comes
        return True

    def lacks(self, ordinal: int, method: str) -> bool:
        """Whether this row is this shard's to make: no earlier run left it, to stay, and none handed it on."""
        part = (method, self.chunk(ordinal))
        return self.shard.owns(part[1]) and ordinal not in self._earlier.get(part, ())

    def expect(self, ordinal: int) -> list[str]:
        """The stream has this prompt, in rising order: the methods whose rows are still to be made for it."""
        chunk = self.chunk(ordinal)
        self._sealed_below = chunk
        wanted = []
        for method in self.methods:
            if self.lacks(ordinal, method):
                self._missing[method, chunk] += 1
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

    def take_complete(self) -> list[Batch]:
        """What completes a part, each row once. `written` says that it is there."""
        return self._take(part for part in self._rows if self._is_complete(part))

    def take_all(self) -> list[Batch]:
        """Every finished row that is in no file and not being written."""
        return self._take(self._rows)

    def being_written(self) -> list[Batch]:
        return list(self._writing.values())

    def written(self, part: Part) -> None:
        del self._writing[part]

    def pending_rows(self) -> list[Row]:
        """Finished rows that are in no file yet."""
        waiting = [row for rows in self._rows.values() for row in rows.values()]
        return waiting + [row for batch in self._writing.values() for row in batch.rows]

    def is_done(self, part: Part) -> bool:
        """Whether the part is complete and in its file."""
        return self._is_complete(part) and part not in self._rows and part not in self._writing

    def _is_complete(self, part: Part) -> bool:
        """Whether no row of the part is still to come."""
        sealed = self.ended or part[1] < self._sealed_below
        return sealed and not self._missing.get(part)

    def _take(self, parts: Iterable[Part]) -> list[Batch]:
        """A part that is being written has to wait: two writers of one file would lose each other's rows."""
        taken = []
        for part in [part for part in parts if part not in self._writing]:
            rows, complete = self._rows.pop(part), self._is_complete(part)
            if complete:
                self._missing.pop(part, None)
            self._writing[part] = Batch(part, tuple(rows[ordinal] for ordinal in sorted(rows)), complete)
            taken.append(self._writing[part])
        return taken
