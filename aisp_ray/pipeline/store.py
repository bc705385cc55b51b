"""The rows of a run between the driver and the part files: what is there, what waits, what is being written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from aisp_ray.files import PARTICLES, ROWS, Output, to_table
from aisp_ray.ledger import Progress
from aisp_ray.pipeline import snapshot as snapshots
from aisp_ray.pipeline.chunks import Chunks, Complete
from aisp_ray.pipeline.manifest import Tally
from aisp_ray.pipeline.snapshot import Key
from aisp_ray.plan import Plan
from aisp_ray.results import PARTICLE_SCHEMA, ROW_SCHEMA

log = logging.getLogger(__name__)

_PAUSES = (1.0, 5.0, 20.0)  # seconds before a write is tried again
_WRITERS = 2  # chunks written at once
_HEARTBEAT_GRACE = 10.0  # seconds


class Store:
    """One thread uses it; the writing is done in others."""

    def __init__(self, plan: Plan, output: Output, chunk_rows: int):
        self.plan = plan
        self.output = output
        self.chunks = Chunks(tuple(plan.methods), chunk_rows)
        self.tallies: dict[str, Tally] = {name: Tally() for name in plan.methods}
        self.num_kept = 0  # rows in files of earlier runs that stay, of prompts below the limit
        self.num_beyond = 0  # rows of earlier runs whose prompts are not below this run's smaller limit; they stay too
        self.particles: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._writing: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    def resume(self, run_id: str) -> tuple[dict[Key, Progress], list[Mapping[str, Any]]]:
        """Look what earlier runs left: files, and from the snapshot searches under way and finished rows.

        Returns the searches, and the finished rows of prompts below the limit that are in no file.
        """
        for method, chunk in self.output.parts():
            if method in self.tallies:
                self._keep(method, chunk)
        packages = {type(method).__module__.partition(".")[0] for method in self.plan.methods.values()}
        earlier = snapshots.load(self.output, self.plan.config_hash, packages)
        if earlier is None:
            return {}, []
        age = time.time() - earlier.time
        if not earlier.ended and age < self.plan.run.snapshot_seconds + _HEARTBEAT_GRACE:
            text = "run %s on %s wrote here %.0f s ago; if it still goes on, both compute the same rows, none doubled"
            log.warning(text, earlier.run_id, earlier.host, age)
        rows = [row for row in earlier.rows if not self._redone(row) and self.chunks.restore(row)]
        for row in rows:
            self.tallies[row["method"]].add(row["status"], row["reward"])
        known = {(row["ordinal"], row["method"]) for row in rows}
        searches = {
            key: progress
            for key, progress in earlier.searches.items()
            if key not in known and not self.chunks.is_committed(*key)
        }
        if self.plan.run.particles:
            searches = self._restore_particles(earlier, known, searches)
        within = [row for row in rows if self._within(row["ordinal"])]
        self.num_beyond += len(rows) - len(within)
        return searches, within

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

    def _keep(self, method: str, chunk: int) -> None:
        table = self.output.read_part(method, chunk, ["ordinal", "status", "reward"])
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

    async def finish(self) -> None:
        """Write what is complete and wait until all of it is there."""
        self._write_complete()
        await asyncio.gather(*self._writing)
        if self._failure is not None:
            raise self._failure
        assert not self.chunks.pending_rows(), "rows were left over"

    def close(self) -> None:
        self._writers.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ files

    def _write_complete(self) -> None:
        for complete in self.chunks.take_complete():
            task = asyncio.create_task(self._write(complete))
            self._writing.add(task)
            task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _write(self, complete: Complete) -> None:
        keys = [(row["ordinal"], row["method"]) for row in complete.rows]
        particles = None
        if self.plan.run.particles:
            particles = [row for key in keys for row in self.particles.get(key, ())]
        loop = asyncio.get_running_loop()
        for pause in (*_PAUSES, None):
            try:
                await loop.run_in_executor(self._writers, self._write_files, complete, particles)
                break
            except Exception as error:
                if pause is None:
                    raise
                log.warning("part %s could not be written, trying again: %s", complete.part, error)
                await asyncio.sleep(pause)
        for key in keys:
            self.particles.pop(key, None)
        self.chunks.written(complete.part)

    def _write_files(self, complete: Complete, particles: list[Mapping[str, Any]] | None) -> None:
        """The particles first: a rows file says that its chunk is done."""
        if particles is not None:
            self._write_file(complete, particles, PARTICLES, PARTICLE_SCHEMA)
        self._write_file(complete, complete.rows, ROWS, ROW_SCHEMA)

    def _write_file(self, complete: Complete, rows: Any, folder: str, schema: pa.Schema) -> None:
        """Write the part with these rows and the others that its file holds now, perhaps put there by another run."""
        from aisp_ray.pipeline.sink import write_chunk

        table = to_table(rows, schema)
        try:
            before = self.output.read_part(*complete.part, folder=folder).cast(schema)
        except FileNotFoundError:
            pass
        else:
            new = {row["ordinal"] for row in complete.rows}
            others = before.filter(pa.array([at not in new for at in before["ordinal"].to_pylist()], pa.bool_()))
            order = ["ordinal"] if folder == ROWS else ["ordinal", "iteration", "particle"]
            table = pa.concat_tables([others, table]).sort_by([(name, "ascending") for name in order])
        write_chunk(self.output, table, *complete.part, folder)
