"""Rows out of one open file. What cannot be read is a record with an error, never an exception.

A record is `{"row": {...}}` or `{"error": "..."}`, JSON values only, so that rows of any mixture of columns and types
travel as one text column.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Record = dict[str, Any]


def read_records(stream: Any, name: str, kind: str, remote: bool, limit: int = 64 << 20) -> Iterator[Record]:
    """Records of a binary stream that holds JSON lines, JSON, CSV or Parquet. `name` is for error sentences.

    What is broken in the file ends as a record with an error. A connection that breaks is raised instead: the rows
    behind it are there, and the same command reads them when it is given again.

    limit: bytes of a line, and a sixteenth of those of a whole JSON document; a longer one is an error.
    """
    readers = {"jsonl": _json_lines, "json": _json, "csv": _csv, "parquet": _parquet}
    try:
        yield from readers[kind](stream, name, limit)
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


def _lines(stream: Any, limit: int) -> Iterator[Any]:
    """The lines of a binary or text stream, None in place of one that is longer than `limit`."""
    while line := stream.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        while line and line[-1] not in (10, "\n"):  # the rest of it, a piece at a time
            line = stream.readline(limit)
        yield None


def _json_lines(stream: Any, name: str, limit: int) -> Iterator[Record]:
    yield from _line_records(enumerate(_lines(stream, limit), start=1), name, limit)


def _line_records(lines: Iterable[tuple[int, bytes | None]], name: str, limit: int) -> Iterator[Record]:
    for number, line in lines:
        if line is None:
            yield {"error": f"line {number} of {name} is longer than {_mebibytes(limit)}: data.max_line_mb"}
        elif line.strip():
            yield _json_record(line, f"line {number} of {name}")


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):g} MiB"


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


def _json(stream: Any, name: str, limit: int) -> Iterator[Record]:
    """One JSON array of rows, one table of columns, or JSON lines under the name .json (as SHP's files are)."""
    lines = (
        (number, line) for number, line in enumerate(_lines(stream, limit), start=1) if line is None or line.strip()
    )
    first = list(itertools.islice(lines, 2))
    if len(first) == 2 and _is_row(first[0][1]):
        yield from _line_records(itertools.chain(first, lines), name, limit)
        return
    most = 16 * limit
    data = b"".join(line for _, line in first if line is not None)
    data += stream.read(most + 1 - len(data))
    if len(data) > most or any(line is None for _, line in first):
        size = _mebibytes(most)
        yield {"error": f"{name} is one JSON document above {size} (16 times data.max_line_mb); write it as JSON lines"}
        return
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        if data.lstrip()[:1] == b"[":
            raise
        yield from _json_lines(io.BytesIO(data), name, limit)
        return
    rows = value if isinstance(value, list) else _columns(value) or [value]
    for number, item in enumerate(rows, start=1):
        yield _record(item, f"item {number} of {name}")


def _is_row(line: bytes | None) -> bool:
    """Whether the line is an object by itself."""
    try:
        return line is not None and isinstance(json.loads(line.decode("utf-8-sig")), Mapping)
    except (ValueError, RecursionError):
        return False


def _columns(table: Any) -> list[dict[str, Any]] | None:
    """The rows of {"column": [values]}, all of one length; None for anything else."""
    if not isinstance(table, Mapping) or not table or not all(isinstance(item, list) for item in table.values()):
        return None
    if len({len(item) for item in table.values()}) != 1:
        return None
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _csv(stream: Any, name: str, limit: int) -> Iterator[Record]:
    csv.field_size_limit(min(limit, 1 << 30))
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(_short_lines(text, limit))
    for number, row in enumerate(reader, start=1):
        if None in row:
            yield {"error": f"row {number} of {name} has more fields than the header's {len(reader.fieldnames or ())}"}
        else:
            yield {"row": row}


def _short_lines(text: Any, limit: int) -> Iterator[str]:
    for number, line in enumerate(_lines(text, limit), start=1):
        if line is None:
            raise ValueError(f"line {number} is longer than {_mebibytes(limit)}: data.max_line_mb")
        yield line


def _parquet(stream: Any, name: str, limit: int) -> Iterator[Record]:
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
