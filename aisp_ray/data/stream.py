"""Prompts as a stream: Ray Data reads and parses in tasks, the caller receives numbered prompts in input order.

Nothing is materialised: a task yields blocks of a few hundred rows, and a caller that stops stops the reading.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aisp_ray.data._records import Record, encode, first_line
from aisp_ray.data._source import Source
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.data.select import DropReport, select
from aisp_ray.types import Message, Prompt

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

log = logging.getLogger(__name__)
BLOCK_ROWS = 256
BLOCK_BYTES = 1 << 20  # a task hands on this much at a time; the default of 128 MiB holds back the first prompts
TASK_CPUS = 0.25  # reading text is light; a run whose actors fill the machine still needs room for it
READERS = 4  # tasks at a time; prompts are taken slowly, so more would only fill memory and start processes
COLUMN = "record"


def stream_prompts(spec: DataSpec, limit: int | None = None, report: DropReport | None = None) -> Iterator[Prompt]:
    """Prompts of a dataset in input order, at most `limit`; `report` is filled while they are taken.

    Ray must be initialised. A row that cannot be used is a prompt with `error`.

    Raises:
        ValueError: nothing is there, or it has other columns (as `DataSpec.check` says beforehand).
    """
    _note_skipped(spec)
    dataset = spec.read()
    parsed = dataset.map_batches(
        parse_batch, fn_kwargs={"spec": spec}, batch_size=None, batch_format="pyarrow", **_task(spec.source())
    )
    _be_quiet(parsed)
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
    except Exception as error:
        return Parsed(error=f"the row cannot be parsed: {type(error).__name__}: {first_line(error)}")


def parse_batch(batch: pa.Table, spec: DataSpec) -> pa.Table:
    """A block of records as a block of parsed rows, both as JSON text. Runs in a task."""
    import pyarrow as pa

    parsed = [parse_record(json.loads(text), spec) for text in batch[COLUMN].to_pylist()]
    return pa.table({COLUMN: pa.array([encode(asdict(row)) for row in parsed], pa.string())})


def read_records(source: Source) -> ray.data.Dataset:
    """The records of a source as Ray Data: one read task a shard, blocks of `BLOCK_ROWS` rows."""
    import ray.data

    dataset = ray.data.read_datasource(
        _datasource(source), override_num_blocks=max(1, len(source.shards())), **_task(source)
    )
    _be_quiet(dataset)
    return dataset


def _rows_of(dataset: ray.data.Dataset) -> Iterator[Parsed]:
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    for batch in batches:
        for text in batch[COLUMN].to_pylist():
            yield _decode(json.loads(text))


def _decode(fields: Mapping[str, Any]) -> Parsed:
    messages = tuple(Message(**turn) for turn in fields["messages"])
    return Parsed(**{**fields, "messages": messages, "rules": tuple(fields["rules"])})


def _be_quiet(dataset: ray.data.Dataset) -> None:
    """Ordered, silent, and never killed for a slow consumer: a search takes minutes between two reads."""
    context = dataset.context
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def _task(source: Source) -> dict[str, Any]:
    """Resources of a task. Files of this node's disk are read on this node, if it can run tasks at all."""
    import ray
    import ray.data

    readers = ray.data.TaskPoolStrategy(size=max(1, min(READERS, len(source.shards()))))
    task: dict[str, Any] = {"num_cpus": TASK_CPUS, "compute": readers}
    if not source.local:
        return task
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return task | {"label_selector": here, "fallback_strategy": [{"label_selector": {}}]}


def _datasource(source: Source) -> Any:
    import pyarrow as pa
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    schema = pa.schema([pa.field(COLUMN, pa.string())])

    class Records(Datasource):
        """A source's shards as read tasks."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda shard=shard: _blocks(shard), unknown, schema) for shard in source.shards()]

    return Records()


def _blocks(shard: Any) -> Iterator[pa.Table]:
    import pyarrow as pa

    rows: list[str] = []
    for record in shard.records():
        rows.append(encode(record))
        if len(rows) == BLOCK_ROWS:
            yield pa.table({COLUMN: pa.array(rows, pa.string())})
            rows = []
    if rows:
        yield pa.table({COLUMN: pa.array(rows, pa.string())})
