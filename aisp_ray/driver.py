"""The one loop, and many of them at once.

`search` is the loop of every method for one prompt. `Driver` runs `in_flight` of them at once, so that the models stay
busy across prompts while each prompt waits for its own iteration. Policies, rewards and judges are anything that obeys
the protocols of `types.py`: local objects or pools of Ray actors. asyncio only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TypeVar

from aisp_ray.errors import DataError, described
from aisp_ray.ledger import Outcome, Progress, Task, Trace, Watch, extend
from aisp_ray.methods.total_budget import TotalBudget, Until, share_of, share_out
from aisp_ray.results import NO_REASON
from aisp_ray.types import Policy, Prompt, Reward, Rollouts, Scores

log = logging.getLogger(__name__)

_HOPELESS = 8  # prompts on which a method may fail without ever completing an iteration, before it ends the run

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class MethodError(RuntimeError):
    """An exception that a method raised on one prompt, with its name and place. `__cause__` is the exception itself."""


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
        MethodError: the method failed. Exceptions of the policy and the reward pass through unchanged.
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
        text = f"the method {task.name} failed: {described(error)} ({place})"
        raise MethodError(text) from error


class Driver:
    """Keeps many searches in flight and hands out their outcomes as they finish.

    Data errors (`DataError`, an unusable prompt, no particle with a reward) and what a method raises on a prompt end as
    outcomes with an `error`. Any other exception ends the run, as does a method that has never worked: `self.progress`
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
        self.num_iterations: Counter[str] = Counter()  # iterations, by method
        self._num_failed: Counter[str] = Counter()  # prompts on which a method failed, by method
        self._reward_failed = False  # whether a traceback of the reward was logged
        self._errors: dict[tuple[int, str], str] = {}  # of searches that failed, until their outcome is handed out

    async def run(
        self,
        tasks: AsyncIterator[Task],
        resume: Mapping[tuple[int, str], Progress] | None = None,
        total: TotalBudget | None = None,
    ) -> AsyncIterator[Outcome]:
        """Outcomes in the order they finish, each task's exactly once.

        Reads `tasks` only as fast as searches end, and no outcome waits for the next task. Outcomes that nobody takes
        hold up new searches. Under a total budget there is no outcome before all of it has been shared out.

        Raises:
            RefusedError: the total budget does not cover a first iteration of every prompt.
        """
        self.progress.update(resume or {})
        tasks, shares = self._counted(tasks), total.shares if total else None
        if total and shares is None:
            tasks, shares = await share_out(tasks, total, self._advance_all, self._progress_of)

        async def whole(task: Task) -> Outcome:
            await self._advance(task, None if shares is None else share_of(shares, task))
            return await self._conclude(task)

        async with contextlib.aclosing(self._lanes(tasks, whole)) as outcomes:
            async for outcome in outcomes:
                self.num_finished += 1
                yield outcome
                self.progress.pop(outcome.task.key, None)  # only now: whoever takes the outcome has it
        assert self.num_started == self.num_finished, (self.num_started, self.num_finished)

    async def _counted(self, tasks: AsyncIterator[Task]) -> AsyncIterator[Task]:
        async for task in tasks:
            self.num_started += 1
            yield task

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

    async def _advance_all(self, tasks: AsyncIterator[Task], until: Until) -> None:
        async with contextlib.aclosing(self._lanes(tasks, lambda task: self._advance(task, until(task)))) as done:
            async for _ in done:
                pass

    def _progress_of(self, task: Task) -> Progress | None:
        return None if task.key in self._errors else self.progress.get(task.key)

    # ------------------------------------------------------------ one search

    async def _advance(self, task: Task, until: int | None) -> None:
        """Search to the end, or until that many iterations; keep the error of a failure in `self._errors`."""
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
        """The outcome of a search that has ended."""
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
        """Log the first traceback of a method; raise the error of one that has never worked."""
        self._num_failed[task.name] += 1
        if not self.num_iterations[task.name] and self._num_failed[task.name] >= self.hopeless:
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
        self.num_iterations[task.name] += 1
        if scores.traceback and not self._reward_failed:
            self._reward_failed = True
            where = f"{task.prompt.prompt_id}, iteration {rollouts.iteration}"
            log.warning(
                "the reward failed on %s; the affected responses are dropped:\n%s", where, scores.traceback.rstrip()
            )
        if self.watch is not None:
            self.watch(task, progress, rollouts, scores)
