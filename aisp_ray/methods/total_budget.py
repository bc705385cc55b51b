"""A budget over all prompts, spent on the searches whose next iterations are expected to gain most.

Each search makes a first iteration. Then, while the budget lasts, those expected to gain most make one more, and so on.
Who makes one is decided once all of the last round have ended, from the traces alone, so it depends neither on the
order in which they ended nor on how many are in flight, and a resumed run takes the same decisions again.

Raman, Asi and Kale, "AdaBoN: adaptive best-of-n alignment", arXiv 2505.12050, share a budget out over prompts after a
first look at each. Only its abstract could be read: that the draws are taken as normal, and that the plan is made anew
after every iteration, is ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aisp_ray.errors import RefusedError
from aisp_ray.ledger import Progress, Task
from aisp_ray.methods._stopping import expected_gains
from aisp_ray.plan import draws_of

Shares = Mapping[str, Mapping[int, int]]  # method -> ordinal of a prompt -> iterations that its search may make
Until = Callable[[Task], int | None]  # the iteration to stop a search at; None: at its own end


@dataclass(frozen=True)
class TotalBudget:
    """Samples over all prompts, for each method."""

    samples: int
    shares: Shares | None = None  # what an earlier run decided
    keep: Callable[[Shares], None] = lambda shares: None  # takes what was decided, before the first outcome


async def share_out(
    tasks: AsyncIterator[Task],
    total: TotalBudget,
    advance: Callable[[AsyncIterator[Task], Until], Awaitable[None]],
    progress_of: Callable[[Task], Progress | None],
) -> tuple[AsyncIterator[Task], Shares]:
    """Search as far as the budget reaches. Returns all tasks, and how many iterations each may make.

    advance: runs searches, each until the given iteration. progress_of: None of a search that failed.

    Raises:
        RefusedError: the budget does not cover a first iteration of every prompt.
    """
    held: list[Task] = []
    shares: dict[str, dict[int, int]] = {}

    def first(task: Task) -> int | None:
        held.append(task)
        if task.prompt.error is not None:
            return None
        mine = shares.setdefault(task.name, {})
        mine[task.prompt.ordinal] = 1
        _check_covered(total.samples, task, len(mine))
        return 1

    def chosen(name: str) -> list[Task]:
        searches = [(task, found) for task in held if task.name == name and (found := progress_of(task)) is not None]
        return _next(searches, shares[name], total.samples)

    await advance(tasks, first)
    while further := [task for name in shares for task in chosen(name)]:
        for task in further:
            shares[task.name][task.prompt.ordinal] += 1
        await advance(_stream(further), functools.partial(share_of, shares))
    total.keep(shares)
    return _stream(sorted(held, key=lambda task: task.prompt.ordinal)), shares


def share_of(shares: Shares, task: Task) -> int | None:
    """Iterations that a search may make.

    Raises:
        RefusedError: the prompt has no share because it was missing when the budget was shared out.
    """
    if task.prompt.error is not None:
        return None
    try:
        return shares[task.name][task.prompt.ordinal]
    except KeyError:
        text = f"{task.prompt.prompt_id} was not there when budget=total was shared out; give another out"
        raise RefusedError(text) from None


def _check_covered(samples: int, task: Task, num_prompts: int) -> None:
    draws = draws_of(task.method)
    if samples < num_prompts * draws:
        raise RefusedError(
            f"budget=total:{samples} does not cover a first iteration of {task.name}, {draws} samples, for each of the "
            f"first {num_prompts} prompts; raise it, or lower limit or method.{task.name}.n"
        )


def _next(searches: Sequence[tuple[Task, Progress]], share: Mapping[int, int], samples: int) -> list[Task]:
    """Those of one method's searches that should make one more iteration. share: iterations, by ordinal."""
    waiting, outlooks = {}, {}
    for task, progress in searches:
        ordinal, trace = task.prompt.ordinal, progress.trace
        made = share[ordinal]
        if progress.state.iteration > made or not progress.state.done:  # an earlier run may have come further
            waiting[ordinal] = task
            outlooks[ordinal] = outlook(task.method, (trace.reward_mean, trace.reward_std, trace.reward_max), made)
    if not waiting:
        return []
    num_draws = draws_of(next(iter(waiting.values())).method)
    plan = allocate(outlooks, samples - num_draws * sum(share.values()))
    return [waiting[ordinal] for ordinal in sorted(plan)]


async def _stream(tasks: Sequence[Task]) -> AsyncIterator[Task]:
    for task in tasks:
        yield task


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a search has seen: mean, standard deviation and best of its rewards, and what it may still do."""

    mean: float  # reward units, of what the next iteration is expected to draw; NaN: unknown
    spread: float  # reward units
    best: float  # reward units
    num_draws: int  # responses of an iteration
    num_left: int  # iterations that it may still make


def outlook(method: Any, trace: tuple[Sequence[float], Sequence[float], Sequence[float]], made: int) -> Outlook:
    """What the next iterations of a search may bring, judged by its first `made`.

    method: its `n`, `kappa` and `same_draws`. trace: mean, standard deviation and highest of the rewards by iteration.
    The outlook has the mean and spread of the last one, or of all where every iteration draws from one distribution.
    """
    means, spreads, highest = (np.array(values[:made], dtype=np.float64) for values in trace)
    used = np.isfinite(spreads) & (method.same_draws | (np.arange(made) == made - 1))
    unknown = not used.any()
    mean = math.nan if unknown else float(means[used].mean())
    spread = math.nan if unknown else float(np.sqrt(np.square(spreads[used]).mean()))
    best = math.nan if unknown else float(np.nanmax(highest))
    return Outlook(mean, spread, best, method.n, method.kappa - made)


def allocate(outlooks: Mapping[int, Outlook], samples: int) -> dict[int, int]:
    """How many more iterations each search should get, by key, so that all of them cost at most `samples`.

    The iterations of the largest expected gain are taken one after another; since each one of a search gains less than
    the one before, no other plan is expected to gain more. Equal gains: the lower key. An iteration that is expected
    to gain nothing, or of which nothing is known, is not made. All searches draw equally many responses an iteration.
    """
    found = []
    for key in sorted(outlooks):
        one = outlooks[key]
        if not np.isfinite([one.mean, one.spread, one.best]).all():
            continue
        counts = [one.num_draws * k for k in range(one.num_left + 1)]
        gains = np.minimum.accumulate(np.diff(expected_gains(one.mean, one.spread, one.best, counts)))
        found += [(-gain, key) for gain in gains.tolist() if gain > 0]
    found.sort()
    plan: dict[int, int] = {}
    for _, key in found[: samples // outlooks[found[0][1]].num_draws if found else 0]:
        plan[key] = plan.get(key, 0) + 1
    return plan
