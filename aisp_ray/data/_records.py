"""Rows out of one open file. What cannot be read is a record with an error, never an exception.

A record is `{"row": {...}}` or `{"error": "..."}`, JSON values only, so that rows of any mixture of columns and types
travel as one text column.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Record = dict[str, Any]


def read_records(stream: Any, name: str, kind: str, remote: bool) -> Iterator[Record]:
    """Records of a binary stream that holds JSON lines, JSON, CSV or Parquet. `name` is for error sentences.

    What is broken in the file ends as a record with an error. A connection that breaks is raised instead: the rows
    behind it are there, and the same command reads them when it is given again.
    """
    readers = {"jsonl": _json_lines, "json": _json, "csv": _csv, "parquet": _parquet}
    try:
        yield from readers[kind](stream, name)
    except Exception as error:  # a torn archive, a Parquet file without its footer
        if remote and isinstance(error, OSError):
            raise
        yield {"error": f"{name} cannot be read on: {type(error).__name__}: {first_line(error)}"}


def encode(record: Record) -> str:
    """The record as ASCII JSON: lone surrogates survive, dates and bytes become text."""
    return json.dumps(record, default=_plain)


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _json_lines(stream: Any, name: str) -> Iterator[Record]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield _json_record(line, f"line {number} of {name}")


def _json_record(data: bytes, where: str) -> Record:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return {"error": f"{where} is not UTF-8 text (byte {error.start})"}
    except (ValueError, RecursionError) as error:
        return {"error": f"{where} is not JSON: {first_line(error)}"}
    return _record(value, where)


def _record(value: Any, where: str) -> Record:
    if isinstance(value, Mapping):
        return {"row": value}
    return {"error": f"{where} holds {type(value).__name__}, not an object with columns"}


def _json(stream: Any, name: str) -> Iterator[Record]:
    """One JSON array of rows, one table of columns, or JSON lines under the name .json (as SHP's files are)."""
    data = stream.read()
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        if data.lstrip()[:1] == b"[":
            raise
        yield from _json_lines(io.BytesIO(data), name)
        return
    rows = value if isinstance(value, list) else _columns(value) or [value]
    for number, item in enumerate(rows, start=1):
        yield _record(item, f"item {number} of {name}")


def _columns(table: Any) -> list[dict[str, Any]] | None:
    """The rows of {"column": [values]}, all of one length; None for anything else."""
    if not isinstance(table, Mapping) or not table or not all(isinstance(item, list) for item in table.values()):
        return None
    if len({len(item) for item in table.values()}) != 1:
        return None
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _csv(stream: Any, name: str) -> Iterator[Record]:
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    for number, row in enumerate(reader, start=1):
        if None in row:
            yield {"error": f"row {number} of {name} has more fields than the header's {len(reader.fieldnames or ())}"}
        else:
            yield {"row": row}


def _parquet(stream: Any, name: str) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from ({"row": row} for row in batch.to_pylist())


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Iterable):
        return list(value)
    return str(value)
