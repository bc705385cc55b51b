"""One run, from the first prompt to the summary: what `pipeline.run` carries out once the machines are there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import heapq
import logging
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from aisp_ray.cluster.metrics import RunMetrics, TimedModel
from aisp_ray.cluster.models import asks_of
from aisp_ray.cluster.opening import open_models
from aisp_ray.data._ray import be_quiet
from aisp_ray.data.select import DropReport
from aisp_ray.data.stream import stream_prompts
from aisp_ray.driver import Driver
from aisp_ray.errors import OK, SOME_ERRORS, RefusedError
from aisp_ray.files import MANIFEST, SUMMARY, Output
from aisp_ray.ledger import Outcome, Progress, Task, particle_rows, row_of
from aisp_ray.pipeline import announcements
from aisp_ray.pipeline import snapshot as snapshots
from aisp_ray.pipeline.exits import Ending
from aisp_ray.pipeline.feed import Feed
from aisp_ray.pipeline.manifest import (
    note_engines,
    open_manifest,
    save_manifest,
    summary_of,
)
from aisp_ray.pipeline.meter import Meter
from aisp_ray.pipeline.progress import Screen
from aisp_ray.pipeline.shards import write_summary
from aisp_ray.pipeline.showcase import Showcase, Shown
from aisp_ray.pipeline.snapshot import RunSnapshot
from aisp_ray.pipeline.spending import Account
from aisp_ray.pipeline.store import Store
from aisp_ray.pipeline.waiting import waits_for
from aisp_ray.plan import Plan
from aisp_ray.rng import derive_seed
from aisp_ray.types import Prompt, Rollouts, Scores

log = logging.getLogger("aisp_ray.run")

_LIMIT_TICK = 1.0  # seconds between two looks at the limits of time and money
_METRICS_TICK = 5.0  # seconds between two records of metrics
_SAMPLE_TICK = 1.0  # seconds between two looks at whether a response is to be shown


class Job:
    """Everything of one run that lives in the driver process."""

    def __init__(self, plan: Plan, output: Output, screen: Screen, ending: Ending, pilot: int | None = None):
        """pilot: run only so many of the plan's prompts, drawn at random."""
        self.pilot = pilot
        self.plan = plan
        self.output = output
        self.screen = screen
        self.run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.manifest = open_manifest(plan, output, self.run_id)
        self.store = Store(plan, output, self.manifest["chunk_rows"])
        self.meter = Meter(len(plan.methods))
        self.showcase = Showcase(list(plan.methods))
        self.report = DropReport()
        self.account = Account(plan.run, plan.out, self.manifest, self.run_id)
        self._ending = ending
        self._feed: Feed | None = None
        self._describing: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._saving = threading.Lock()
        self._saved_last = False
        self._resumed = False  # before that, a snapshot would overwrite what an earlier run left

    async def run(self) -> int:
        """The exit code."""
        if reached := self.account.limit_reached():
            raise reached  # by earlier starts
        async with open_models(self.plan, self.screen.say) as models:
            be_quiet()
            self.models = models
            self.pools = self.account.pools = models.pools
            self.metrics = RunMetrics()
            for name, pool in self.pools.items():
                pool.count = functools.partial(self.metrics.event, name)
            policy, reward = TimedModel(models.policy, self.metrics), TimedModel(models.reward, self.metrics)
            self.driver = Driver(policy, reward, models.judges, self.plan.seed, models.in_flight)
            self.driver.watch = self._iterated
            code = await self._ending.guard(self._go())
            await self._close(code)
        return code

    # ------------------------------------------------------------ the run

    async def _go(self) -> int:
        run = self.plan.run
        self._say(announcements.loading(self.plan, self.run_id, self.pools))
        self._feed = Feed(self._read)
        searches, rows = self.store.resume(self.run_id)
        self.driver.progress.update(searches)  # now: a snapshot taken while models load must hold them
        self._resumed = True
        self.meter.num_earlier = self.store.num_kept + len(rows)
        if self.plan.limit is not None and self.pilot is None:
            self.meter.num_rows_total = self._num_rows(self.plan.limit)
        self._say(announcements.resuming(self.plan, self.store, self.meter.num_earlier, len(searches)))
        self._every(run.snapshot_seconds, self._snapshot)
        self._every(run.snapshot_seconds, self._note_in_manifest)
        self._every(_LIMIT_TICK, self._stop_at_limit)
        self._every(run.flush_seconds, self._flush)
        self._every(self.screen.every, self._show)
        self._every(_METRICS_TICK, self._record)
        await self._note_in_manifest()
        await self.models.ready()
        self.meter.begin()
        self.screen.say(announcements.searching(self.plan, self.meter.num_rows_total, self.models.in_flight))
        self._every(_SAMPLE_TICK, self._sample)
        total = snapshots.total_budget(self.output, self.plan, self.meter.num_earlier)
        async for outcome in self.driver.run(self._tasks(self._feed), searches, total):
            self._finished(outcome)
        await self.store.finish()
        self._say(self.report.lines(self.plan.data))
        if self._feed.total == 0:
            raise RefusedError(f"data.path={self.plan.data.path} holds no row (split {self.plan.data.split})")
        return SOME_ERRORS if any(tally.errors for tally in self.store.tallies.values()) else OK

    def _read(self) -> Iterator[Prompt]:
        prompts = stream_prompts(self.plan.data, self.plan.limit, self.report)
        if self.pilot is not None:
            drawn = heapq.nsmallest(self.pilot, prompts, lambda prompt: derive_seed("pilot", prompt.prompt_id))
            prompts = iter(sorted(drawn, key=lambda prompt: prompt.ordinal))
        yield from prompts

    async def _tasks(self, feed: Feed) -> AsyncIterator[Task]:
        async for prompt in feed:
            if feed.total is not None:
                self.meter.num_rows_total = self._num_rows(feed.total)
            if self._describing is None and prompt.error is None:
                self._describing = asyncio.create_task(self._describe(prompt))
            for name in self.store.chunks.expect(prompt.ordinal):
                yield Task(prompt, name, self.plan.methods[name])
        self.store.chunks.end()
        assert feed.total is not None  # the feed has ended
        self.meter.num_rows_total = self._num_rows(feed.total)

    def _num_rows(self, num_prompts: int) -> int:
        """Rows of this run's shard of so many prompts; those of a pilot are few and scattered, and counted whole."""
        shard, chunk_rows = self.store.shard, self.store.chunks.chunk_rows
        return shard.count(num_prompts, chunk_rows) * len(self.plan.methods)

    def _iterated(self, task: Task, progress: Progress, rollouts: Rollouts, scores: Scores) -> None:
        tokens = rollouts.num_generated_tokens
        best = progress.state.best
        self.meter.iteration(tokens, 1 / task.method.num_iterations, best.reward if best else math.nan)
        if best:
            self._exhibit(task, Shown(best.response, best.reward, ended=False))
        self.metrics.iteration(task.name, tokens)
        if self.plan.run.particles:
            self.store.add_particles(task.key, particle_rows(task, rollouts, scores, self.run_id))
        if self.screen.as_json:
            extra = {"prompt_id": task.prompt.prompt_id, "method": task.name, "iteration": rollouts.iteration}
            log.info("iteration told", extra=extra)

    def _finished(self, outcome: Outcome) -> None:
        identity = {"run_id": self.run_id, "config_hash": self.plan.config_hash, "seed": self.plan.seed}
        row = row_of(outcome, identity)
        self.store.add(row)
        self.meter.row(outcome.error is None)
        response = row["response"] if outcome.error is None else None
        self._exhibit(outcome.task, None if response is None else Shown(response, row["reward"]))
        self.metrics.row(outcome.task.name, row["status"])
        if outcome.error is not None:
            extra = {"prompt_id": row["prompt_id"], "method": row["method"]}
            log.info("error row: %s", outcome.error, extra=extra)
        self._release_surplus()

    def _release_surplus(self) -> None:
        """In the tail, when no new search can start, actors without work go, and their nodes with them."""
        if self._feed is None or self.meter.num_rows_total is None or not self.store.chunks.ended:
            return
        for pool in (self.pools["policy"], self.pools["reward"]):
            per_actor = max(1.0, self.models.in_flight / pool.settings.high)
            pool.resize(math.ceil(self._under_way / per_actor))

    # ------------------------------------------------------------ the screen

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.screen.say(line)

    def _exhibit(self, task: Task, shown: Shown | None) -> None:
        self.showcase.note(task.prompt.prompt_id, task.prompt.text, task.name, shown)

    async def _sample(self) -> None:
        sample = self.showcase.take()
        if sample is not None:
            best = {name: shown and shown.response for name, shown in sample.best.items()}
            self.screen.draw(sample.drawing(), prompt=sample.prompt, best=best)

    async def _describe(self, prompt: Prompt) -> None:
        """Show and keep what the models read of the first prompt: a wrong template is seen at once."""
        shown: dict[str, str | None] = {"prompt_id": prompt.prompt_id}
        for role in ("policy", "reward"):
            shown[role] = await announcements.read_of(prompt, self.pools[role])
            self._say(announcements.shown_prompt(role, shown[role]))
        self.manifest["first_prompt"] = shown
        await self._note_in_manifest()
        scales = [engine["noise_scale"] for engine in self.manifest["engine"] if "noise_scale" in engine]
        if scales:
            self.screen.say(f"policy: noise of sigma 1 changes its logits by {scales[0]:.3g} (standard deviation)")

    async def _note_in_manifest(self) -> None:
        """Keep what this start has taken, and engines that came later, perhaps on another kind of GPU."""
        note_engines(self.manifest, self.pools["policy"])
        self.account.note()
        self.manifest |= await asyncio.to_thread(self._save_manifest, dict(self.manifest))

    def _save_manifest(self, manifest: dict[str, Any]) -> dict[str, Any]:
        with self._saving:
            return save_manifest(self.output, manifest, self.run_id)

    async def _stop_at_limit(self) -> None:
        if reached := self.account.limit_reached():
            self._ending.stop(reached)

    async def _show(self) -> None:
        status = self.meter.status(self.pools, self._under_way, self.account.in_words())
        if self._feed is not None and self.store.chunks.ended is False:
            waits = await asyncio.to_thread(waits_for, self._feed, self.pools, asks_of(self.plan))
            status = dataclasses.replace(status, trouble=waits or status.trouble)
        self.screen.show(status)

    async def _record(self) -> None:
        self._gauge()

    def _gauge(self) -> None:
        best = self.meter.best if math.isfinite(self.meter.best) else None
        self.metrics.state(self.pools, self._under_way, best)
        self.metrics.spent(self.account.spent().actor_hours, self.account.in_all().cost(self.plan.run.price))

    @property
    def _under_way(self) -> int:
        return self.driver.num_started - self.driver.num_finished

    # ------------------------------------------------------------ the end

    async def _snapshot(self) -> None:
        await asyncio.to_thread(self._save, self._state(ended=False))

    async def _flush(self) -> None:
        self.store.flush()

    def _save(self, state: RunSnapshot) -> None:
        """Write a snapshot; none after the one of the end, however long its writing thread was held up."""
        with self._saving:
            if not self._saved_last:
                snapshots.save(self.output, state, self.store.shard.snapshot)
                self._saved_last = state.ended

    def _state(self, ended: bool) -> RunSnapshot:
        return RunSnapshot(
            config_hash=self.plan.config_hash,
            run_id=self.run_id,
            searches=dict(self.driver.progress),
            rows=self.store.pending_rows(),
            particles={key: tuple(rows) for key, rows in self.store.particles.items()},  # copied: a thread writes them
            ended=ended,
        )

    async def _close(self, code: int) -> None:
        done = code in (OK, SOME_ERRORS)
        if self._resumed:
            with self._said("the last snapshot could not be written; the same command resumes from the one before"):
                self._save(self._state(ended=True))
        for task in (*self._background, *filter(None, [self._describing])):
            task.cancel()
        with self._said("finished rows could not be written; they are in the snapshot"):
            await self.store.flush_at_the_end()
        if self._feed is not None:
            self._feed.close()
        if done:
            await asyncio.gather(*(pool.refresh() for pool in self.pools.values()))
        self._gauge()
        with self._said(f"{MANIFEST} could not be written"):
            await self._note_in_manifest()
        with self._said(f"{SUMMARY} could not be written"):
            self._write_summary(code)
        self.store.close()

    @contextlib.contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """A failure at the end is said and changes no exit code: the rows decide that."""
        try:
            yield
        except Exception as error:
            self.screen.say(f"warning: {what}: {error}")

    def _write_summary(self, code: int) -> None:
        seconds = time.monotonic() - self.meter.started
        facts = {
            "run_id": self.run_id,
            "config_hash": self.plan.config_hash,
            "exit_code": code,
            "seconds": round(seconds, 3),
            "in_flight": self.models.in_flight,
            "rows_of_earlier_runs": self.meter.num_earlier,
            "iterations": self.meter.num_iterations,
            "generated_tokens": self.meter.num_tokens,
            "tokens_per_second": round(self.meter.num_tokens / max(seconds, 1e-9), 3),
            "data": self.report.as_dict(),
            **self.account.facts(),
        }
        write_summary(self.output, self.store.shard, summary_of(facts, self.store.tallies, self.pools))

    # ------------------------------------------------------------ parts

    def _every(self, seconds: float, what: Any) -> None:
        async def loop() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await what()
                except Exception as error:  # a full disk must not end the searches; the next one may work
                    log.warning("%s failed: %s", what.__name__.strip("_"), error)

        self._background.append(asyncio.create_task(loop()))
