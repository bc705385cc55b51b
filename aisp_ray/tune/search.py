"""The search: batches of trials go through rungs of prompts, and the worse ones stop.

Knows neither models nor files: values come from `measure`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aisp_ray.config import ConfigError
from aisp_ray.methods.base import Method
from aisp_ray.tune.propose import Proposer
from aisp_ray.tune.rungs import rung_sizes, survivors
from aisp_ray.tune.trial import Trial

# methods by trial number, first and last prompt (exclusive) -> objective of each of these prompts, in order
Measure = Callable[[Mapping[int, Method], int, int], Awaitable[Mapping[int, Sequence[float]]]]


class Maker(Protocol):
    """Makes methods of settings (`space.Workbench`)."""

    def make(self, settings: Mapping[str, Any]) -> Method: ...


@dataclass(frozen=True)
class Rules:
    """How a search spends its prompts."""

    num_prompts: int  # a complete trial has seen so many
    stop: str = "race"  # rule of `rungs.survivors`
    first_rung: int = 4  # prompts before anything is dropped
    batch: int = 4  # trials under way together


async def run_search(
    preset: Trial,
    proposer: Proposer,
    maker: Maker,
    measure: Measure,
    rules: Rules,
    seen: Callable[[Sequence[Trial]], None] = lambda trials: None,
) -> list[Trial]:
    """All trials, the preset first. The preset is taken to be complete. seen: called whenever values have come."""
    trials = [preset]
    while settings := proposer.ask(rules.batch):
        batch = [make_trial(len(trials) + i, each, maker) for i, each in enumerate(settings)]
        trials += batch
        await _through_rungs(batch, trials, measure, rules, seen)
        proposer.tell(batch)
        seen(trials)
    return trials


def make_trial(number: int, settings: Mapping[str, Any], maker: Maker) -> Trial:
    """A trial that runs, or one that is invalid because the method refuses the settings."""
    try:
        return Trial(number, settings, maker.make(settings))
    except ConfigError as error:
        return Trial(number, settings, None, state="invalid", reason=str(error))


async def _through_rungs(
    batch: Sequence[Trial],
    trials: Sequence[Trial],
    measure: Measure,
    rules: Rules,
    seen: Callable[[Sequence[Trial]], None],
) -> None:
    alive = [trial for trial in batch if trial.method is not None]
    first = rules.num_prompts if rules.stop == "none" else rules.first_rung
    before = 0
    for size in rung_sizes(rules.num_prompts, first):
        if not alive:
            return
        await extend(alive, measure, before, size)
        seen(trials)
        if size == rules.num_prompts:
            break
        reached = [trial for trial in trials if trial.num_seen >= size]
        kept = survivors(rules.stop, alive, reached, size)
        for trial in alive:
            if trial not in kept:
                trial.state = "stopped"
        alive, before = kept, size
    for trial in alive:
        trial.state = "complete"


async def extend(trials: Sequence[Trial], measure: Measure, before: int, size: int) -> None:
    """Measure prompts `before` to `size` of these trials together."""
    methods = {trial.number: trial.method for trial in trials if trial.method is not None}
    if not methods or size <= before:
        return
    found = await measure(methods, before, size)
    for trial in trials:
        assert trial.num_seen == before, (trial.number, trial.num_seen, before)
        trial.values.extend(found[trial.number])


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The complete trial with the highest mean over the preset's prompts (`Trial.score`); the earlier one wins a tie.

    trials: the preset first.

    Raises:
        ValueError: no trial has a value on all of these prompts.
    """
    scores = {trial.number: trial.score(trials[0]) for trial in trials if trial.state == "complete"}
    known = [trial for trial in trials if math.isfinite(scores.get(trial.number, math.nan))]
    if not known:
        raise ValueError("no setting has a finite objective: see the errors in evaluations/")
    return max(known, key=lambda trial: (scores[trial.number], -trial.number))
