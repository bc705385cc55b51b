"""Ray Data's way out: each chunk of rows becomes one Parquet file, written by a task, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockAccessor

from aisp_ray.data._ray import on_this_node
from aisp_ray.files import Output

_WRITE_CPUS = 0.25  # a chunk is a few hundred kilobytes

Part = tuple[str, int]  # method, chunk
First = tuple[str, int]  # method and ordinal of a part's first row


class PartsDatasink(ray.data.Datasink[None]):
    """Writes blocks, each the whole of one part, into their part files."""

    def __init__(self, output: Output, folder: str, parts: Mapping[First, tuple[Part, int]], schema: pa.Schema):
        """parts: where a block belongs, and how many rows it has, by its first row."""
        self.output = output
        self.folder = folder
        self.parts = parts
        self.schema = schema

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow().cast(self.schema)
            part, num_rows = self.parts[_first(table)]
            if table.num_rows != num_rows:
                raise RuntimeError(f"Ray Data handed on {table.num_rows} of the {num_rows} rows of part {part}")
            self.output.write_part(table.replace_schema_metadata(self.schema.metadata), *part, self.folder)


def write_parts(output: Output, tables: Mapping[Part, pa.Table], folder: str) -> None:
    """Write part files through Ray Data; returns when they are there. One without rows needs no task."""
    for part in (part for part, table in tables.items() if not table.num_rows):
        output.write_part(tables[part], *part, folder)
    filled = {part: table for part, table in tables.items() if table.num_rows}
    if not filled:
        return
    parts = {_first(table): (part, table.num_rows) for part, table in filled.items()}
    sink = PartsDatasink(output, folder, parts, next(iter(filled.values())).schema)
    where = on_this_node() if output.is_local else {}  # where the reader will look
    dataset = ray.data.from_arrow([*filled.values()])
    dataset.write_datasink(sink, ray_remote_args={"num_cpus": _WRITE_CPUS, **where})


def _first(table: pa.Table) -> First:
    return table["method"][0].as_py(), table["ordinal"][0].as_py()
