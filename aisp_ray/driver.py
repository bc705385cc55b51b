"""The one loop, and many of them at once.

`search` is the loop of every method for one prompt. `Driver` keeps `in_flight` of them going, so that the models are
filled across prompts while each prompt waits for its own iteration. Policies, rewards and judges are anything behind
the protocols of `types.py`: local objects or pools of Ray actors. asyncio only.

Under a budget over all prompts (`TotalBudget`) searches advance by iterations. Each makes a first one; then, while the
budget lasts, those whose next iterations are expected to gain most make one more, and so on. Who makes one is decided
when all of the last round have ended, from the traces alone, so it depends neither on the order in which they ended
nor on how many are in flight, and a resumed run takes the same decisions again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from aisp_ray.errors import DataError, RefusedError
from aisp_ray.ledger import Outcome, Progress, Task, Trace, Watch, extend
from aisp_ray.methods._allocation import allocate, outlook
from aisp_ray.plan import draws_of
from aisp_ray.results import NO_REASON
from aisp_ray.types import Policy, Prompt, Reward, Rollouts, Scores

log = logging.getLogger(__name__)

_HOPELESS = 8  # prompts on which a method failed that never came through an iteration: it is at fault, not they

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Shares = Mapping[str, Mapping[int, int]]  # method -> ordinal of a prompt -> iterations that its search may make


class MethodError(RuntimeError):
    """What a method raised on one prompt, with its name and place. `__cause__` is the exception itself."""


@dataclass(frozen=True)
class TotalBudget:
    """Samples over all prompts, for each method."""

    samples: int
    shares: Shares | None = None  # what an earlier run decided
    keep: Callable[[Shares], None] = lambda shares: None  # takes what was decided, before the first outcome


async def search(
    task: Task,
    policy: Policy,
    reward: Reward,
    seed: int,
    resume: Progress | None = None,
    watch: Watch | None = None,
    until: int | None = None,
) -> Progress:
    """Run one prompt under one method to its end, or for `until` iterations in all, from the start or a snapshot.

    Raises:
        MethodError: the method failed. What the policy and the reward raise comes through as it is.
    """
    method, prompt = task.method, task.prompt
    with _named(task):
        progress = resume or Progress(method.init(prompt, seed), Trace())
    while not progress.state.done:
        if until is not None and progress.state.iteration >= until:
            break
        started = time.perf_counter()
        with _named(task):
            proposal = method.ask(progress.state)
        rollouts = await policy.rollout(prompt, proposal, seed)
        scores = await reward.score(prompt, tuple(item.text for item in rollouts.items))
        with _named(task):
            state, info = method.tell(progress.state, rollouts, scores)
        seconds = time.perf_counter() - started
        progress = Progress(state, extend(progress.trace, (rollouts, scores), (state, info), seconds))
        if watch is not None:
            watch(task, progress, rollouts, scores)
    return progress


@contextlib.contextmanager
def _named(task: Task) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
        text = f"the method {task.name} failed: {type(error).__name__}: {error} ({place})"
        raise MethodError(text) from error


class Driver:
    """Keeps many searches in flight and hands out their outcomes as they finish.

    Data errors (`DataError`, an unusable prompt, no particle with a reward) and what a method raises on a prompt end as
    outcomes with an `error`. Any other exception ends the run, and so does a method that never worked: `self.progress`
    then still holds every search in flight, for the snapshot.
    """

    def __init__(self, policy: Policy, reward: Reward, judges: Mapping[str, Reward], seed: int, in_flight: int):
        self.policy = policy
        self.reward = reward
        self.judges = judges
        self.seed = seed
        self.in_flight = in_flight
        self.progress: dict[tuple[int, str], Progress] = {}
        self.num_started = 0
        self.num_finished = 0
        self.watch: Watch | None = None
        self.hopeless: float = _HOPELESS  # math.inf: a method that never works ends as error rows, not the run
        self._num_told: Counter[str] = Counter()  # iterations, by method
        self._num_failed: Counter[str] = Counter()  # prompts on which a method failed, by method
        self._reward_failed = False  # whether a traceback of the reward was shown
        self._errors: dict[tuple[int, str], str] = {}  # of searches that failed, until their outcome is handed out

    async def run(
        self,
        tasks: AsyncIterator[Task],
        resume: Mapping[tuple[int, str], Progress] | None = None,
        total: TotalBudget | None = None,
    ) -> AsyncIterator[Outcome]:
        """Outcomes in the order they finish, each task's exactly once.

        Reads `tasks` only as fast as searches end, and no outcome waits for the next task to come. Outcomes that
        nobody takes hold up new searches. Under a total budget there is no outcome before all of it is shared out.

        Raises:
            RefusedError: the total budget does not cover a first iteration of every prompt.
        """
        self.progress.update(resume or {})
        shares = total.shares if total else None
        if total and shares is None:
            tasks, shares = await self._share_out(tasks, total)

        async def whole(task: Task) -> Outcome:
            if not (total and total.shares is None):
                self.num_started += 1
            await self._advance(task, None if shares is None else _share(shares, task))
            return await self._conclude(task)

        async with contextlib.aclosing(self._lanes(tasks, whole)) as outcomes:
            async for outcome in outcomes:
                self.num_finished += 1
                yield outcome
                self.progress.pop(outcome.task.key, None)  # only now: the taker holds the outcome
        assert self.num_started == self.num_finished, (self.num_started, self.num_finished)

    async def _lanes(
        self, items: AsyncIterator[_Item], work: Callable[[_Item], Awaitable[_Result]]
    ) -> AsyncGenerator[_Result, None]:
        """The results of `work` in the order they finish, `in_flight` of it at once."""
        source, turn = aiter(items), asyncio.Lock()
        results: asyncio.Queue[tuple[_Result] | None] = asyncio.Queue(maxsize=self.in_flight)

        async def lane() -> None:
            while True:
                async with turn:
                    item = await anext(source, None)
                if item is None:
                    return
                await results.put((await work(item),))

        async def all_lanes() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.in_flight):
                        group.create_task(lane())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from errors.exceptions[0].__cause__
            finally:
                with contextlib.suppress(asyncio.QueueFull):
                    results.put_nowait(None)

        lanes = asyncio.create_task(all_lanes())
        try:
            while not (lanes.done() and results.empty()):
                result = await results.get()
                if result is None:
                    break
                yield result[0]
            await lanes
        finally:
            lanes.cancel()
            await asyncio.gather(lanes, return_exceptions=True)

    # ------------------------------------------------------------ a budget over all prompts

    async def _share_out(self, tasks: AsyncIterator[Task], total: TotalBudget) -> tuple[AsyncIterator[Task], Shares]:
        """Search as far as the budget reaches. Returns all tasks, and how many iterations each may make."""
        held: list[Task] = []
        shares: dict[str, dict[int, int]] = {}

        async def first(task: Task) -> None:
            self.num_started += 1
            held.append(task)
            if task.prompt.error is None:
                mine = shares.setdefault(task.name, {})
                mine[task.prompt.ordinal] = 1
                _check_covered(total.samples, task, len(mine))
                await self._advance(task, 1)

        await self._all(tasks, first)
        while chosen := [task for name in shares for task in self._next(held, shares[name], name, total.samples)]:
            for task in chosen:
                shares[task.name][task.prompt.ordinal] += 1
            await self._all(_stream(chosen), lambda task: self._advance(task, _share(shares, task)))
        total.keep(shares)
        return _stream(sorted(held, key=lambda task: task.prompt.ordinal)), shares

    async def _all(self, items: AsyncIterator[Task], work: Callable[[Task], Awaitable[None]]) -> None:
        async with contextlib.aclosing(self._lanes(items, work)) as done:
            async for _ in done:
                pass

    def _next(self, held: Sequence[Task], share: Mapping[int, int], name: str, samples: int) -> list[Task]:
        """The tasks of a method that should make one more iteration."""
        waiting, outlooks = {}, {}
        for task in held:
            progress, ordinal = self.progress.get(task.key), task.prompt.ordinal
            if task.name != name or progress is None or task.key in self._errors:
                continue
            told = share[ordinal]
            if progress.state.iteration > told or not progress.state.done:  # an earlier run may have come further
                trace = progress.trace
                waiting[ordinal] = task
                outlooks[ordinal] = outlook(task.method, (trace.reward_mean, trace.reward_std, trace.reward_max), told)
        if not waiting:
            return []
        num_draws = draws_of(next(iter(waiting.values())).method)
        plan = allocate(outlooks, samples - num_draws * sum(share.values()))
        return [waiting[ordinal] for ordinal in sorted(plan)]

    # ------------------------------------------------------------ one search

    async def _advance(self, task: Task, until: int | None) -> None:
        """Search until the end or so many iterations; what fails is kept in `self._errors`."""
        if task.prompt.error is not None or task.key in self._errors:
            return
        earlier = self.progress.get(task.key)
        try:
            self.progress[task.key] = await search(
                task, self.policy, self.reward, self.seed, earlier, self._watch, until
            )
        except DataError as error:
            self._errors[task.key] = str(error)
        except MethodError as error:
            self._note_failure(task, error)
            self._errors[task.key] = str(error)

    async def _conclude(self, task: Task) -> Outcome:
        """The outcome of a search that has come to its end."""
        if task.prompt.error is not None:
            return Outcome(task, None, task.prompt.error)
        progress = self.progress.get(task.key)
        failed = self._errors.pop(task.key, None)
        if failed is not None or progress is None:
            return Outcome(task, progress, failed)
        best = progress.state.best
        if best is None:
            reason = progress.trace.particle_error or "the reward model gave no reason"
            return Outcome(task, progress, f"no response got a finite reward: {reason}")
        return Outcome(task, progress, None, *await self._judge(task.prompt, best.response))

    def _note_failure(self, task: Task, error: MethodError) -> None:
        """Show the first traceback of a method; raise the error of one that never worked."""
        self._num_failed[task.name] += 1
        if not self._num_told[task.name] and self._num_failed[task.name] >= self.hopeless:
            raise error
        if self._num_failed[task.name] == 1:
            text = "".join(traceback.format_exception(error.__cause__))
            log.warning("%s on %s, which is an error row:\n%s", error, task.prompt.prompt_id, text.rstrip())

    async def _judge(self, prompt: Prompt, response: str) -> tuple[dict[str, float], dict[str, str]]:
        """Each judge's reward of the response (NaN from one that cannot score it, which costs no row), and why not."""

        async def ask(judge: Reward) -> tuple[float, str | None]:
            try:
                scores = await judge.score(prompt, (response,))
            except DataError as error:
                return math.nan, str(error)
            return scores.rewards[0], scores.errors[0] if scores.errors else None

        answers = dict(zip(self.judges, await asyncio.gather(*map(ask, self.judges.values())), strict=True))
        rewards = {name: reward for name, (reward, _) in answers.items()}
        failed = {name: text or NO_REASON for name, (_, text) in answers.items() if not math.isfinite(rewards[name])}
        return rewards, failed

    def _watch(self, task: Task, progress: Progress, rollouts: Rollouts, scores: Scores) -> None:
        self.progress[task.key] = progress
        self._num_told[task.name] += 1
        if scores.traceback and not self._reward_failed:
            self._reward_failed = True
            where = f"{task.prompt.prompt_id}, iteration {rollouts.iteration}"
            log.warning(
                "the reward failed on %s; the affected responses are dropped:\n%s", where, scores.traceback.rstrip()
            )
        if self.watch is not None:
            self.watch(task, progress, rollouts, scores)


def _check_covered(samples: int, task: Task, num_prompts: int) -> None:
    draws = draws_of(task.method)
    if samples < num_prompts * draws:
        raise RefusedError(
            f"budget=total:{samples} does not cover a first iteration of {task.name}, {draws} samples, for each of the "
            f"first {num_prompts} prompts; raise it, or lower limit or method.{task.name}.n"
        )


def _share(shares: Shares, task: Task) -> int | None:
    """Raises RefusedError where a prompt has no share: it was not there when the budget was shared out."""
    if task.prompt.error is not None:
        return None
    try:
        return shares[task.name][task.prompt.ordinal]
    except KeyError:
        text = f"{task.prompt.prompt_id} was not there when budget=total was shared out; give another out"
        raise RefusedError(text) from None


async def _stream(tasks: Sequence[Task]) -> AsyncIterator[Task]:
    for task in tasks:
        yield task
