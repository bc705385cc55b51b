"""The records of a source as Ray Data: one read task a shard, small blocks, in order and in silence."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aisp_ray.data._records import encode
from aisp_ray.data._source import RowSource

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

BLOCK_ROWS = 256
BLOCK_BYTES = 1 << 20  # a task hands on this much at a time; the default of 128 MiB holds back the first prompts
TASK_CPUS = 0.25  # reading text is light; a run whose actors fill the machine still needs room for it
READERS = 4  # tasks at a time; prompts are taken slowly, so more would only fill memory and start processes
COLUMN = "record"


def read_records(source: RowSource) -> ray.data.Dataset:
    """The records of a source as Ray Data: one read task a shard, blocks of `BLOCK_ROWS` rows."""
    import ray.data

    dataset = ray.data.read_datasource(
        _datasource(source), override_num_blocks=max(1, len(source.shards())), **task_options(source)
    )
    be_quiet(dataset)
    return dataset


def be_quiet(dataset: ray.data.Dataset | None = None) -> None:
    """Ordered, silent, and never killed for a slow consumer: a search takes minutes between two reads.

    dataset: this one, in small blocks; None: those that are made from now on in this process.
    """
    import ray.data

    warnings.filterwarnings("ignore", module=r"ray\.data")
    context = ray.data.DataContext.get_current() if dataset is None else dataset.context
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if dataset is not None:
        context.target_max_block_size = BLOCK_BYTES
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for name in ("ray", "ray.data.dataset", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.ERROR)


def task_options(source: RowSource) -> dict[str, Any]:
    """Resources of a task. Files of this node's disk are read on this node, if it can run tasks at all."""
    import ray.data

    readers = ray.data.TaskPoolStrategy(size=max(1, min(READERS, len(source.shards()))))
    task: dict[str, Any] = {"num_cpus": TASK_CPUS, "compute": readers}
    return task | on_this_node() if source.local else task


def on_this_node() -> dict[str, Any]:
    """Options of a task that reads or writes this node's disk."""
    import ray

    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return {"label_selector": here, "fallback_strategy": [{"label_selector": {}}]}


def _datasource(source: RowSource) -> Any:
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
            return [ReadTask(functools.partial(_blocks, shard), unknown, schema) for shard in source.shards()]

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
