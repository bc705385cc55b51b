"""The rows of a run between the driver and the part files: what is there, what waits, what is being written.

Ray Data writes parts that are complete, all there are at a time: each start of it costs the driver a tenth of a second
of CPU, and 90 KB that it never gives back. A part that grows is replaced by this process, whole, every
`run.flush_seconds`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from aisp_ray.errors import RefusedError
from aisp_ray.files import PARTICLES, ROWS, Output, inside, part_name, to_table
from aisp_ray.ledger import Progress
from aisp_ray.pipeline import snapshot as snapshots
from aisp_ray.pipeline.chunks import Batch, Chunks, Part
from aisp_ray.pipeline.manifest import Tally
from aisp_ray.pipeline.shards import RunShard, snapshots_of
from aisp_ray.pipeline.snapshot import Key
from aisp_ray.plan import Plan
from aisp_ray.results import PARTICLE_SCHEMA, ROW_SCHEMA

log = logging.getLogger(__name__)

WriteParts = Callable[[Mapping[Part, pa.Table], str], None]  # tables, folder

_PAUSES = (1.0, 5.0, 20.0)  # seconds before a write is tried again
_WRITERS = 2  # writes at once
_TOGETHER_SECONDS = 30.0  # at least, between two starts of Ray Data; `run.flush_seconds` where that is less
_OF_A_ROW = ["ordinal", "method", "status", "reward"]  # the columns that are read of rows that are there
_HEARTBEAT_GRACE = 10.0  # seconds


class Store:
    """One thread uses it; the writing is done in others."""

    def __init__(self, plan: Plan, output: Output, chunk_rows: int):
        self.plan = plan
        self.output = output
        self.shard = RunShard.read(plan.run.shard)
        self.chunks = Chunks(tuple(plan.methods), chunk_rows, self.shard)
        self.tallies: dict[str, Tally] = {name: Tally() for name in plan.methods}
        self.num_kept = 0  # rows in files of earlier runs that stay, of prompts below the limit
        self.num_beyond = 0  # rows of earlier runs whose prompts are not below this run's smaller limit; they stay too
        self.particles: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
        self._own: dict[tuple[Part, str], pa.Table] = {}  # what this run put into the files of parts not complete yet
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._writing: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._closed = False
        self._write_again = 0.0  # time.monotonic() before which complete parts wait for others

    def resume(self, run_id: str) -> tuple[dict[Key, Progress], list[Mapping[str, Any]]]:
        """Look what earlier runs left: files, and from the snapshot searches under way and finished rows.

        Returns the searches, and the finished rows of prompts below the limit that are in no file.
        """
        parts = [part for part in self.output.parts() if part[0] in self.tallies]
        for name in sorted({*self.output.parquet_files(ROWS)} - {f"{ROWS}/{part_name(*part)}" for part in parts}):
            self._require_rows(self.output.read_table(name, _OF_A_ROW), name)
        for method, chunk in parts:
            if self.shard.owns(chunk):
                self._keep(method, chunk)
        packages = {type(method).__module__.partition(".")[0] for method in self.plan.methods.values()}
        searches: dict[Key, Progress] = {}
        restored = []
        for name, shard in snapshots_of(self.output).items():  # of this shard, and of others where k has changed
            earlier = snapshots.load(self.output, self.plan.config_hash, packages, name)
            if earlier is None:
                continue
            if shard.overlaps(self.shard):
                self._warn_of_another(earlier)
            rows = [row for row in earlier.rows if not self._redone(row) and self.chunks.restore(row)]
            restored += rows
            self._restore_searches(earlier, {(row["ordinal"], row["method"]) for row in rows}, searches)
        for row in restored:
            self.tallies[row["method"]].add(row["status"], row["reward"])
            searches.pop((row["ordinal"], row["method"]), None)
        within = [row for row in restored if self._within(row["ordinal"])]
        self.num_beyond += len(restored) - len(within)
        return searches, within

    def _warn_of_another(self, earlier: snapshots.RunSnapshot) -> None:
        age = time.time() - earlier.time
        if not earlier.ended and age < self.plan.run.snapshot_seconds + _HEARTBEAT_GRACE:
            text = "run %s on %s wrote here %.0f s ago; if it still goes on, both compute the same rows, none doubled"
            log.warning(text, earlier.run_id, earlier.host, age)

    def _restore_searches(
        self, earlier: snapshots.RunSnapshot, finished: set[Key], searches: dict[Key, Progress]
    ) -> None:
        """Take what a snapshot holds of searches that this shard has to end, where it is further than what is known."""
        found = {key: progress for key, progress in earlier.searches.items() if self.chunks.lacks(*key)}
        for key in [*found]:
            if key in searches and searches[key].state.iteration >= found[key].state.iteration:
                del found[key]
        if self.plan.run.particles:
            found = self._restore_particles(earlier, finished, found)
        searches.update(found)

    def _within(self, ordinal: int) -> bool:
        return self.plan.limit is None or ordinal < self.plan.limit

    def _redone(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of an earlier run is computed again: an error of a prompt that this run reads."""
        return self.plan.run.retry_errors and row["status"] == "error" and self._within(row["ordinal"])

    def _restore_particles(
        self, earlier: snapshots.RunSnapshot, finished: set[Key], searches: dict[Key, Progress]
    ) -> dict[Key, Progress]:
        """Take the particles of finished rows and of the iterations that searches have behind them, no others.

        Returns the searches that can go on; one whose particles are not all there starts anew.
        """
        going_on = {}
        for key in finished:
            self.particles[key] = list(earlier.particles.get(key, ()))
        for key, progress in searches.items():
            told = progress.state.iteration
            rows = [row for row in earlier.particles.get(key, ()) if row["iteration"] < told]
            if {row["iteration"] for row in rows} == set(range(told)):
                going_on[key], self.particles[key] = progress, rows
        return going_on

    def _require_rows(self, table: pa.Table, name: str) -> None:
        """Raises RefusedError for a table of somebody else's: the report at the end could not read it either."""
        missing = [column for column in _OF_A_ROW if column not in table.column_names]
        if missing:
            raise RefusedError(
                f"{inside(self.plan.out, name)} is not a file of an evaluation: it has no column {missing[0]}; "
                "move it out of that folder"
            )

    def _keep(self, method: str, chunk: int) -> None:
        table = self.output.read_part(method, chunk, _OF_A_ROW)
        self._require_rows(table, f"{ROWS}/{part_name(method, chunk)}")
        kept = []
        for row in table.to_pylist():
            if self._redone(row):
                continue
            kept.append(row["ordinal"])
            self.tallies[method].add(row["status"], row["reward"])
        self.chunks.keep((method, chunk), kept)
        within = sum(map(self._within, kept))
        self.num_kept += within
        self.num_beyond += len(kept) - within

    # ------------------------------------------------------------ rows

    def add(self, row: Mapping[str, Any]) -> None:
        """A finished row; parts that it completes are written in the background.

        Raises whatever an earlier write failed with: a run that cannot write need not go on.
        """
        if self._failure is not None:
            raise self._failure
        self.chunks.add(row)
        self.tallies[row["method"]].add(row["status"], row["reward"])
        self._write_complete()

    def add_particles(self, key: Key, rows: Iterable[Mapping[str, Any]]) -> None:
        self.particles[key].extend(rows)

    def pending_rows(self) -> list[Mapping[str, Any]]:
        return self.chunks.pending_rows()

    def flush(self) -> None:
        """Begin to write every finished row that is in no file yet."""
        self._begin(self.chunks.take_all())

    async def finish(self) -> None:
        """Write what is complete and wait until all of it is there."""
        self._write_complete()
        while self._writing:  # a part that was growing meanwhile is written once more
            await asyncio.gather(*self._writing)
        if self._failure is not None:
            raise self._failure
        assert not self.chunks.pending_rows(), "rows were left over"

    async def flush_at_the_end(self) -> None:
        """Write every finished row that is in no file, now and without Ray, which may be what ended the run.

        A write that is under way may be one that hangs; both write the same rows.
        """
        batches = (*self.chunks.being_written(), *self.chunks.take_all())
        await asyncio.to_thread(self._write_files, batches, self._particles_of(batches), self._write_here)

    def close(self) -> None:
        self._closed = True
        self._writers.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ files

    def _write_complete(self) -> None:
        """Begin to write complete parts, unless others were a moment ago; at the end of a run none waits."""
        if self.chunks.ended or time.monotonic() >= self._write_again:
            self._begin(self.chunks.take_complete())

    def _begin(self, batches: Sequence[Batch]) -> None:
        complete = [batch for batch in batches if batch.complete]
        if complete:
            self._write_again = time.monotonic() + min(_TOGETHER_SECONDS, self.plan.run.flush_seconds)
        for together in filter(None, (complete, *([batch] for batch in batches if not batch.complete))):
            task = asyncio.create_task(self._write(together))
            self._writing.add(task)
            task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
        elif not self._closed:
            self._write_complete()

    async def _write(self, batches: Sequence[Batch]) -> None:
        """All of them complete, or one that is not."""
        particles = self._particles_of(batches)
        loop = asyncio.get_running_loop()
        for pause in (*_PAUSES, None):
            try:
                write = _write_by_ray_data(self.output) if batches[0].complete else self._write_here
                own = await loop.run_in_executor(self._writers, self._write_files, batches, particles, write)
                break
            except Exception as error:
                if pause is None:
                    raise
                parts = ", ".join(part_name(*batch.part) for batch in batches)
                log.warning("%s could not be written, trying again: %s", parts, error)
                await asyncio.sleep(pause)
        self._own |= own
        for batch in batches:
            for row in batch.rows:
                self.particles.pop((row["ordinal"], row["method"]), None)
            self.chunks.written(batch.part)
        for key in [key for key in self._own if self.chunks.is_done(key[0])]:
            del self._own[key]

    def _write_here(self, tables: Mapping[Part, pa.Table], folder: str) -> None:
        for part, table in tables.items():
            self.output.write_part(table, *part, folder)

    def _particles_of(self, batches: Sequence[Batch]) -> dict[Part, list[Mapping[str, Any]]] | None:
        if not self.plan.run.particles:
            return None
        return {
            batch.part: [row for of in batch.rows for row in self.particles.get((of["ordinal"], of["method"]), ())]
            for batch in batches
        }

    def _write_files(
        self, batches: Sequence[Batch], particles: Mapping[Part, list[Mapping[str, Any]]] | None, write: WriteParts
    ) -> dict[tuple[Part, str], pa.Table]:
        """Write the files of parts; returns what of them is of this run.

        The particles first: a row in a file says that its particles are there.
        """
        own = {}
        for batch in batches:
            tables = {} if particles is None else {PARTICLES: to_table(particles[batch.part], PARTICLE_SCHEMA)}
            tables[ROWS] = to_table(batch.rows, ROW_SCHEMA)
            new = {row["ordinal"] for row in batch.rows}
            for folder, table in tables.items():  # another run may have replaced the file since this one wrote it
                before = self._own.get((batch.part, folder))
                merged = table if before is None else pa.concat_tables([_without(before, new), table])
                own[batch.part, folder] = merged
        for folder in (PARTICLES, ROWS):
            whole = {}
            for part in (part for part, at in own if at == folder):
                ordinals = {*own[part, ROWS]["ordinal"].to_pylist()}
                whole[part] = self._with_others(part, folder, own[part, folder], ordinals)
            if whole:
                write(whole, folder)
        return own

    def _with_others(self, part: Part, folder: str, table: pa.Table, own: set[int]) -> pa.Table:
        """With the rows of other prompts that the file holds now, perhaps put there by another run."""
        try:
            before = self.output.read_part(*part, folder=folder).cast(table.schema)
        except FileNotFoundError:
            return table
        order = ["ordinal"] if folder == ROWS else ["ordinal", "iteration", "particle"]
        return pa.concat_tables([_without(before, own), table]).sort_by([(name, "ascending") for name in order])


def _without(table: pa.Table, ordinals: set[int]) -> pa.Table:
    return table.filter(pa.array([at not in ordinals for at in table["ordinal"].to_pylist()], pa.bool_()))


def _write_by_ray_data(output: Output) -> WriteParts:
    from aisp_ray.pipeline.sink import write_parts

    return functools.partial(write_parts, output)
