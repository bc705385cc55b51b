"""Data sets to train on, from an evaluation: preference pairs, demonstrations, candidates with rewards.

They are Parquet in the layout that `datasets.load_dataset(<to>)` reads, with the columns that TRL's trainers take:
`prompt chosen rejected` (DPO, reward modelling), `prompt completion` (SFT). Preference pairs and candidates are made
of all particles, so the evaluation must have been run with run.particles=true; SFT sets need its rows only.

Rows are made once and spooled; which of them stay is decided when all have been seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aisp_ray.report.export.card import Contents, write_card
from aisp_ray.report.export.drops import Drops
from aisp_ray.report.export.filters import RowFilters, RowIndex, choose, draw_control
from aisp_ray.report.export.formats import Made, as_row, make_rows, schema_of
from aisp_ray.report.export.hub import push
from aisp_ray.report.export.pools import PromptPool, pools
from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.export.shards import CONTROL, DATA, ShardWriter, Spool
from aisp_ray.report.rows import output_list, read_rows
from aisp_ray.rng import derive_seed


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    rows: Mapping[str, int]  # by split
    control: Mapping[str, int]  # the same of the control; empty without one
    drops: Drops


def export(settings: ExportSettings) -> Exported:
    """Write the data set, and push it where that is asked for.

    Raises:
        ValueError: there are no rows, no particles where they are needed, or nothing passes the filters. An export
            that was in the folder is then still there.
    """
    check_methods(settings)
    drops, contents = Drops(), Contents()
    writer = ShardWriter(settings.folder, settings.shard_rows)
    with tempfile.TemporaryDirectory(prefix="aisp-export-") as folder:
        kept, made = (_Rows(f"{folder}/{name}.parquet", settings) for name in ("kept", "made"))
        _make(settings, drops, kept, made)
        keep = choose(kept.index, settings, drops)
        if not keep.any():
            raise ValueError("\n".join(["nothing is left to export: every row was dropped", *drops.lines()]))
        writer.clear()
        writer.write(DATA, contents.seen(kept.spool.read(keep)), kept.index.splits)
        if settings.control:
            drawn = draw_control(made.index, writer.rows[DATA], settings.seed)
            writer.write(CONTROL, made.spool.read(drawn), made.index.splits)
    write_card(writer, settings, drops, contents)
    if settings.push_to:
        push(settings)
    return Exported(writer.rows[DATA], writer.rows.get(CONTROL, {}), drops)


class _Rows:
    """Spooled rows, and what is needed to choose among them."""

    def __init__(self, path: str, settings: ExportSettings):
        self.settings = settings
        self.spool, self.index = Spool(path, schema_of(settings)), RowIndex()

    def add(self, rows: Sequence[Made], split: str) -> None:
        for row in rows:
            self.spool.add(as_row(row, self.settings))
            self.index.add(row, split)


def _make(settings: ExportSettings, drops: Drops, kept: _Rows, made: _Rows) -> None:
    """Every row that passes into `kept`; for a control, every row without a filter on rows into `made`."""
    filters = RowFilters(settings, drops)
    any_length = replace(settings, length_ratio=None)
    for pool in pools(settings):
        split = split_of(pool, settings)
        plain = rows = make_rows(pool, any_length, drops)
        drops.num_prompts += 1
        drops.num_empty += not plain
        drops.num_made += len(plain)
        if settings.control:
            made.add(plain, split)
        if settings.length_ratio is not None:
            rows = make_rows(pool, settings)
            drops.row("length_ratio", max(0, len(plain) - len(rows)))
        kept.add(filters.kept(rows), split)


def check_methods(settings: ExportSettings) -> None:
    """Raises ValueError for a method that no row is of."""
    known = {name for out in output_list(settings.out) for name in read_rows(out)["method"].unique().to_pylist()}
    asked_for = [("methods", name) for name in settings.methods]
    if settings.format == "preference" and settings.rejected == "base":
        asked_for.append(("base", settings.base))
    for key, name in asked_for:
        if name not in known:
            raise ValueError(f"{key}={name}: no rows of it; the rows are of {', '.join(sorted(known))}")


def split_of(pool: PromptPool, settings: ExportSettings) -> str:
    """The split by the prompt's text: the same prompt of another run, seed or method goes to the same side."""
    place = np.float64(derive_seed("export split", pool.prompt)) / 2**64
    if place < settings.test_share:
        return "test"
    return "validation" if place < settings.test_share + settings.validation_share else "train"
