"""One search from the first prompt to the written preset."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from aisp_ray import config
from aisp_ray.cluster.models import Models
from aisp_ray.cluster.opening import open_models
from aisp_ray.driver import Driver
from aisp_ray.errors import OK, SOME_ERRORS, RefusedError, redacted_values, refuse
from aisp_ray.files import Output, inside
from aisp_ray.methods.base import Method
from aisp_ray.pipeline.exits import Ending
from aisp_ray.pipeline.meter import Status
from aisp_ray.pipeline.progress import Screen
from aisp_ray.pipeline.run import check_output
from aisp_ray.plan import describe
from aisp_ray.results import LEDGER
from aisp_ray.tune import heldout as held
from aisp_ray.tune import table as tables
from aisp_ray.tune.evaluate import Evaluator
from aisp_ray.tune.objective import make_objective
from aisp_ray.tune.plan import TunePlan
from aisp_ray.tune.propose import make_proposer
from aisp_ray.tune.search import best_trial, extend, make_trial, run_search
from aisp_ray.tune.space import text_of
from aisp_ray.tune.store import Evaluations, setting_hash
from aisp_ray.tune.trial import Trial
from aisp_ray.types import Prompt


def run(plan: TunePlan) -> int:
    """Carry out the plan; returns the exit code (`pipeline.exits`)."""
    if problems := check_output(plan.out):
        return refuse(problems)
    screen = Screen(every=plan.run.progress_seconds, as_json=plan.run.json_logs)
    return Study(plan, Output(plan.out), screen).run(functools.partial(read_prompts, plan, screen))


def read_prompts(plan: TunePlan, screen: Screen) -> tuple[list[Prompt], list[Prompt]]:
    """Usable tuning and held-out prompts, disjoint by their text and by their ids.

    Raises:
        ConfigError: nothing is left of one of them, or two different prompts have one id.
    """
    from aisp_ray.data.stream import rows_locally  # a few hundred prompts at most: no need of Ray Data

    def usable(spec: Any, limit: int) -> list[Prompt]:
        found = list(rows_locally(spec, limit))
        kept = [prompt for prompt in found if prompt.error is None]
        if len(kept) < len(found):
            screen.say(f"{len(found) - len(kept)} prompts of {spec.dataset} cannot be used and are left out")
        return kept

    count = plan.rules.num_prompts
    if plan.heldout is None:
        both = usable(plan.data, count + plan.heldout_limit)
        tuning, others = both[:count], both[count:]
    else:
        tuning, others = usable(plan.data, count), usable(plan.heldout, plan.heldout_limit)
    kept = held.disjoint(others, tuning)
    if len(kept) < len(others):
        screen.say(f"{len(others) - len(kept)} held-out prompts are tuning prompts too and are left out")
    if not tuning:
        raise config.ConfigError("data: there are no usable tuning prompts")
    if not kept and plan.heldout_limit:
        raise config.ConfigError(
            "there are no held-out prompts left; give heldout=<a choice of data>, a smaller limit, or heldout_limit=0"
        )
    refuse_one_id_for_two(tuning, kept)
    return tuning, kept


def refuse_one_id_for_two(tuning: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
    """An id names a prompt's randomness and its rows, so a held-out prompt must not have that of a tuning prompt.

    Raises:
        ConfigError: one does; names the key that sets them apart.
    """
    shared = {prompt.prompt_id for prompt in tuning} & {prompt.prompt_id for prompt in heldout}
    if shared:
        name = heldout[0].dataset
        raise config.ConfigError(
            f"{len(shared)} held-out prompts have the id of another tuning prompt (such as {min(shared)}): both sets "
            f"are named {name}; give the held-out one a name of its own, such as heldout.name={name}_heldout"
        )


class Study:
    """One search and its output. `run` takes what opens the shared models, so that tests can give their own."""

    def __init__(self, plan: TunePlan, output: Output, screen: Screen):
        self.plan = plan
        self.output = output
        self.screen = screen
        self.store = Evaluations(output)
        self.tuning: list[Prompt] = []
        self.heldout: list[Prompt] = []
        self.started = time.monotonic()
        self._estimates: dict[Any, Any] = {}

    def run(
        self,
        read: Callable[[], tuple[list[Prompt], list[Prompt]]],
        opened: Callable[..., AbstractAsyncContextManager[Models]] = open_models,
    ) -> int:
        """The exit code. read: gives the tuning and the held-out prompts; opened: the models of a plan."""
        ending = Ending(self.screen, self.plan.out, lambda: self.store.flush())

        async def main() -> int:
            self._open(*read())
            try:
                async with opened(self.plan, self.screen.say) as models:
                    return await ending.guard(self._search(models))
            finally:
                self._save()

        return ending.run(main)

    def _open(self, tuning: list[Prompt], heldout: list[Prompt]) -> None:
        self.tuning, self.heldout = tuning, heldout
        settings = self.plan.run
        ids = {"tuning": [each.prompt_id for each in tuning], "heldout": [each.prompt_id for each in heldout]}
        about = {"config": self.plan.config, "prompts": ids, "command": sys.argv}
        self.store.open(self.plan.fingerprint, settings.on_mismatch, settings.retry_errors, about)

    async def _search(self, models: Models) -> int:
        await models.ready()
        driver = Driver(models.policy, models.reward, models.judges, self.plan.seed, models.in_flight)
        showing = asyncio.create_task(self._show())
        try:
            return await self._go(driver)
        finally:
            showing.cancel()

    def _save(self) -> None:
        """Write what is new at the end; where it cannot be written that is said, and the exit code stays."""
        try:
            self.store.flush()
        except Exception as error:
            self.screen.say(f"error: the last evaluations could not be written: {error}")

    async def _go(self, driver: Driver) -> int:
        plan, rules = self.plan, self.plan.rules
        identity = {
            "run_id": f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            "config_hash": setting_hash(redacted_values(plan.fingerprint)),
            "seed": plan.seed,
        }
        objective = make_objective(plan.objective, list(plan.judges))
        evaluator = Evaluator(driver, self.store, objective, identity, plan.run.snapshot_seconds)
        self._announce()

        async def measure(methods: Mapping[int, Method], first: int, last: int) -> Mapping[int, Sequence[float]]:
            return await evaluator.measure(methods, self.tuning[first:last])

        preset = make_trial(0, plan.workbench.centre(), plan.workbench)
        if preset.method is None:
            raise RefusedError(f"the preset does not fit the budget: {preset.reason}")
        num_prompts = len(self.tuning)
        await extend([preset], measure, 0, num_prompts)
        preset.state = "complete"
        self._write_trials([preset])
        self._refuse_without_value(preset)
        proposer = make_proposer(plan.search, plan.workbench.space, plan.trials, plan.seed, preset)
        rules = dataclasses.replace(rules, num_prompts=num_prompts)  # the data may hold fewer than asked for
        trials = await run_search(preset, proposer, plan.workbench, measure, rules, self._seen)
        best = best_trial(trials)
        chosen = await self._confirm(evaluator, preset, best)
        return self._finish(trials, best, chosen, evaluator.num_asked)

    def _refuse_without_value(self, preset: Trial) -> None:
        """Raises ValueError with the first error: a search could only spend, as all settings are compared with it."""
        if preset.num_failed < preset.num_seen:
            return
        rows = [self.store.get(setting_hash(describe(preset.method)), prompt) for prompt in self.tuning]
        error = next((row["error"] for row in rows if row is not None and row["error"]), "none of its rows is an error")
        raise ValueError(
            f"the preset has no finite {self.plan.objective} on any of {preset.num_seen} tuning prompts, so there is "
            f"nothing to compare a setting with: {error}"
        )

    async def _confirm(self, evaluator: Evaluator, preset: Trial, best: Trial) -> held.Confirmation | None:
        if not self.heldout:
            return None
        pair = {trial.number: trial.method for trial in (preset, best) if trial.method is not None}
        values = await evaluator.measure(pair, self.heldout)
        again = [
            Trial(trial.number, trial.settings, trial.method, values=values[trial.number]) for trial in (preset, best)
        ]
        return held.confirm(*again)

    # ------------------------------------------------------------ what is said and written

    async def _show(self) -> None:
        """A line now and then while evaluations come in."""
        while True:
            before, since = self.store.num_new, time.monotonic()
            await asyncio.sleep(self.screen.every)
            rate = (self.store.num_new - before) / (time.monotonic() - since)
            self.screen.show(Status(f"{self.store.num_new} new evaluations (setting x prompt), {rate:.2g} a second"))

    def _announce(self) -> None:
        plan = self.plan
        size = len(plan.workbench.space.grid())
        wanted = plan.trials if plan.trials is not None else "all"
        earlier = f"; {len(self.store.rows)} evaluations are there already" if self.store.rows else ""
        self.screen.say(
            f"{plan.search} search {plan.name}: {wanted} settings of {plan.workbench.space.method} "
            f"({size} in the full grid), {plan.workbench.samples()} samples per prompt, {len(self.tuning)} tuning and "
            f"{len(self.heldout)} held-out prompts{earlier}"
        )

    def _seen(self, trials: Sequence[Trial]) -> None:
        best = best_trial(trials)
        running = sum(trial.state == "running" for trial in trials)
        seen = sum(trial.num_seen for trial in trials)
        self.screen.say(
            f"{len(trials) - 1} trials, {running} under way, {seen} evaluations; best {best.mean():.4g} "
            f"with {text_of(best.settings)}{' (the preset)' if best.number == 0 else ''}"
        )
        self._write_trials(trials)

    def _write_trials(self, trials: Sequence[Trial]) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        costs, hashes = {}, {}
        for trial in trials:
            if trial.method is not None:
                seen = self.tuning[: trial.num_seen]
                hashes[trial.number] = setting_hash(describe(trial.method))
                costs[trial.number] = self.store.sums(hashes[trial.number], seen, LEDGER)
        space, objective = self.plan.workbench.space, self.plan.objective
        found = tables.trial_table(trials, space, objective, costs, self._estimates, hashes)
        sink = pa.BufferOutputStream()
        pq.write_table(found, sink)
        self.output.write(tables.NAME, sink.getvalue().to_pybytes())
        return found

    def _say_what_cannot_be_chosen(self, trials: Sequence[Trial]) -> None:
        complete = [trial for trial in trials if trial.state == "complete"]
        failed = [trial.number for trial in complete if not math.isfinite(trial.score(trials[0]))]
        if failed:
            self.screen.say(
                f"trials that cannot be chosen, as they have no value on prompts where the preset has one: "
                f"{', '.join(map(str, failed))}; run.retry_errors=true measures these prompts again"
            )

    def _finish(self, trials: Sequence[Trial], best: Trial, chosen: held.Confirmation | None, num_asked: int) -> int:
        plan = self.plan
        self._write_trials(trials)
        self._say_what_cannot_be_chosen(trials)
        tuning = held.confirm(trials[0], best)
        shown = f"{plan.objective} {tuning.best.mean:.3f} on {tuning.best.count} tuning prompts"
        if chosen is not None:
            shown += (
                f", {chosen.best.mean:.3f} on {chosen.best.count} held-out prompts (preset {chosen.preset.mean:.3f})"
            )
        text = held.preset_yaml(plan.workbench, best.method, best, shown)  # type: ignore[arg-type]
        self.output.write("best.yaml", text.encode())
        if plan.save_as is not None:
            preset_path(plan.save_as).write_text(text, encoding="utf-8")
        grid = len(plan.workbench.space.grid()) * len(self.tuning)
        cost = {
            "settings": len(trials),
            "evaluations": sum(trial.num_seen for trial in trials),
            "evaluations_of_the_full_grid": grid,
            "asked_with_heldout": num_asked,
            "new": self.store.num_new,
            "seconds": round(time.monotonic() - self.started, 2),
        }
        self.output.write_json("summary.json", held.summary(tuning, chosen, best, cost))
        saved = f"; the full grid takes {grid}" if grid > cost["evaluations"] else ""
        print(
            f"\nspent    {cost['evaluations']} evaluations (setting x prompt){saved}"
            f"\ntrials   {inside(plan.out, tables.NAME)}\nbest     {inside(plan.out, 'best.yaml')}"
            + (f", saved as method={plan.save_as}" if plan.save_as else "")
        )
        return SOME_ERRORS if any(trial.num_failed for trial in trials) else OK


def preset_path(name: str) -> Path:
    """Where `save_as` writes."""
    return config.conf_folder() / "method" / f"{name}.yaml"
