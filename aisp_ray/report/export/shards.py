"""Files of a data set: <to>/data/<split>-<number>.parquet, <to>/control/ beside it, and rows on their way there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aisp_ray.files import Output, to_table
from aisp_ray.report.export.filters import SPLITS

DATA, CONTROL = "data", "control"  # folders, and what the card calls them: the configurations default and control
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.parquet")
_BUFFER = 2000  # rows


class Spool:
    """Rows in a temporary file until it is known which of them stay."""

    def __init__(self, path: str, schema: pa.Schema):
        self.path, self.schema = path, schema
        self._rows: list[Mapping[str, Any]] = []
        self._writer = pq.ParquetWriter(path, schema, compression="lz4")

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(to_table(self._rows, self.schema))
            self._rows.clear()

    def read(self, keep: np.ndarray) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Tables of the rows to keep, and their positions; keep: bool [rows]. Nothing can be added afterwards."""
        self._flush()
        self._writer.close()
        start = 0
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_BUFFER):
                at = np.flatnonzero(keep[start : start + batch.num_rows])
                yield pa.Table.from_batches([batch]).take(at), at + start
                start += batch.num_rows


class ShardWriter:
    """Writes shards of `shard_rows` rows, and removes those of an earlier export.

    Raises:
        ValueError: a folder holds something that no export wrote, which is not ours to remove.
    """

    def __init__(self, to: str, shard_rows: int):
        self.to, self.shard_rows = to, shard_rows
        self.output = Output(to, unfinished=".")
        self.rows: dict[str, dict[str, int]] = {}  # folder -> split -> rows
        for folder in (DATA, CONTROL):
            self._earlier(folder)

    def _earlier(self, folder: str) -> list[str]:
        names = self.output.names(folder)
        others = [name for name in names if not _SHARD.fullmatch(name)]
        if others:
            raise ValueError(
                f"to={self.to}: its folder {folder} holds {others[0]}, which no export wrote; give another `to`"
            )
        return names

    def clear(self) -> None:
        """Remove an earlier export: there is something to put in its place."""
        for folder in (DATA, CONTROL):
            for name in self._earlier(folder):
                self.output.remove(f"{folder}/{name}")

    def write(self, folder: str, tables: Iterator[tuple[pa.Table, np.ndarray]], splits: Sequence[int]) -> None:
        """splits: the number of each row's split, by its position."""
        waiting: dict[str, list[pa.Table]] = {name: [] for name in SPLITS}
        of = np.array(splits)
        for table, positions in tables:
            for number, name in enumerate(SPLITS):
                waiting[name].append(table.take(np.flatnonzero(of[positions] == number)))
                if sum(map(len, waiting[name])) >= self.shard_rows:
                    waiting[name] = self._shards(folder, name, waiting[name])
        for name, left in waiting.items():
            if rest := self._shards(folder, name, left):
                self._shard(folder, name, pa.concat_tables(rest))

    def _shards(self, folder: str, split: str, tables: list[pa.Table]) -> list[pa.Table]:
        """Write as many whole shards as the tables hold; returns the rest, an empty list where nothing is left."""
        rows = pa.concat_tables(tables) if tables else None
        while rows is not None and len(rows) >= self.shard_rows:
            self._shard(folder, split, rows.slice(0, self.shard_rows))
            rows = rows.slice(self.shard_rows)
        return [rows] if rows is not None and len(rows) else []

    def _shard(self, folder: str, split: str, table: pa.Table) -> None:
        rows = self.rows.setdefault(folder, {})
        number = -(-rows.get(split, 0) // self.shard_rows)
        self.output.write_table(f"{folder}/{split}-{number:05d}.parquet", table)
        rows[split] = rows.get(split, 0) + len(table)
