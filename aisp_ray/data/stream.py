"""Prompts as a stream: Ray Data reads and parses in tasks, the caller receives numbered prompts in input order.

Nothing is materialised: a task yields blocks of a few hundred rows, and a caller that stops stops the reading.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aisp_ray.data._ray import COLUMN, be_quiet, task_options
from aisp_ray.data._records import Record, encode, first_line
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.data.select import DropReport, select
from aisp_ray.types import Message, Prompt

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

log = logging.getLogger(__name__)


def stream_prompts(spec: DataSpec, limit: int | None = None, report: DropReport | None = None) -> Iterator[Prompt]:
    """Prompts of a dataset in input order, at most `limit`; `report` is filled while they are taken.

    Ray must be initialised. A row that cannot be used is a prompt with `error`.

    Raises:
        ValueError: nothing is there, or it has other columns (as `DataSpec.check` says beforehand).
    """
    _note_skipped(spec)
    dataset = spec.read()
    rule: Any = parse_batch  # Ray's types know no Arrow tables
    parsed = dataset.map_batches(
        rule, fn_kwargs={"spec": spec}, batch_size=None, batch_format="pyarrow", **task_options(spec.source())
    )
    be_quiet(parsed)
    return select(_rows_of(parsed), spec, limit, report if report is not None else DropReport())


def rows_locally(spec: DataSpec, limit: int | None = None, report: DropReport | None = None) -> Iterator[Prompt]:
    """The same prompts without Ray: the plain reference."""
    _note_skipped(spec)
    records = (record for shard in spec.source().shards() for record in shard.records())
    parsed = (parse_record(json.loads(encode(record)), spec) for record in records)
    return select(parsed, spec, limit, report if report is not None else DropReport())


def _note_skipped(spec: DataSpec) -> None:
    """Name what lies beside the data and is not read."""
    if names := spec.source().skipped:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        log.warning("data.path=%s: no data, skipped: %s%s", spec.path, ", ".join(names[:4]), more)


def parse_record(record: Record, spec: DataSpec) -> Parsed:
    """The prompt of one record; an error of the parsing rule itself is an error of the row."""
    if "error" in record:
        return Parsed(error=record["error"])
    try:
        return spec.parse(record["row"])
    except (Exception, SystemExit) as error:  # of somebody's own parser: the process reads other rows, too
        return Parsed(error=f"the row cannot be parsed: {type(error).__name__}: {first_line(error)}")


def parse_batch(batch: pa.Table, spec: DataSpec) -> pa.Table:
    """A block of records as a block of parsed rows, both as JSON text. Runs in a task."""
    import pyarrow as pa

    parsed = [parse_record(json.loads(text), spec) for text in batch[COLUMN].to_pylist()]
    return pa.table({COLUMN: pa.array([encode(asdict(row)) for row in parsed], pa.string())})


def _rows_of(dataset: ray.data.Dataset) -> Iterator[Parsed]:
    batches: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    for batch in batches:
        for text in batch[COLUMN].to_pylist():
            yield _decode(json.loads(text))


def _decode(fields: Mapping[str, Any]) -> Parsed:
    messages = tuple(Message(**turn) for turn in fields["messages"])
    if len(messages) == 1 and messages[0].content == fields["text"]:  # most prompts: held, and sent to actors, once
        messages = (Message(messages[0].role, fields["text"]),)
    return Parsed(**{**fields, "messages": messages, "rules": tuple(fields["rules"])})
