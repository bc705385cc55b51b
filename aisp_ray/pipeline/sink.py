"""Ray Data's way out: a chunk of rows becomes one Parquet file, written by a task, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockAccessor

from aisp_ray.data._ray import on_this_node
from aisp_ray.files import ROWS, Output

_WRITE_CPUS = 0.25  # a chunk is a few hundred kilobytes


class ChunkDatasink(ray.data.Datasink[None]):
    """Writes all it is given into the one part file of (method, chunk)."""

    def __init__(self, output: Output, method: str, chunk: int, folder: str, schema: pa.Schema):
        self.output = output
        self.method = method
        self.chunk = chunk
        self.folder = folder
        self.schema = schema

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        tables = [BlockAccessor.for_block(block).to_arrow().cast(self.schema) for block in blocks]
        table = pa.concat_tables(tables).replace_schema_metadata(self.schema.metadata)
        self.output.write_part(table, self.method, self.chunk, self.folder)


def write_chunk(output: Output, table: pa.Table, method: str, chunk: int, folder: str = ROWS) -> None:
    """Write one part file through Ray Data; returns when it is there."""
    sink = ChunkDatasink(output, method, chunk, folder, table.schema)
    where = on_this_node() if output.is_local else {}  # where the reader will look
    ray.data.from_arrow(table).write_datasink(sink, ray_remote_args={"num_cpus": _WRITE_CPUS, **where})
