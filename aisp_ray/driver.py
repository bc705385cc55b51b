"""The one loop, and many of them at once.

`search` is the loop of every method for one prompt. `Driver` keeps `in_flight` of them going, so that the models are
filled across prompts while each prompt waits for its own iteration. Policies, rewards and judges are anything behind
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
from collections.abc import AsyncIterator, Iterator, Mapping

from aisp_ray.errors import DataError
from aisp_ray.ledger import Outcome, Progress, Task, Trace, Watch, extend
from aisp_ray.results import NO_REASON
from aisp_ray.types import Policy, Prompt, Reward, Rollouts, Scores

log = logging.getLogger(__name__)

_HOPELESS = 8  # prompts on which a method failed that never came through an iteration: it is at fault, not they


class MethodError(RuntimeError):
    """What a method raised on one prompt, with its name and place. `__cause__` is the exception itself."""


async def search(
    task: Task, policy: Policy, reward: Reward, seed: int, resume: Progress | None = None, watch: Watch | None = None
) -> Progress:
    """Run one prompt under one method to its end, from the start or from a snapshot.

    Raises:
        MethodError: the method failed. What the policy and the reward raise comes through as it is.
    """
    method, prompt = task.method, task.prompt
    with _named(task):
        progress = resume or Progress(method.init(prompt, seed), Trace())
    while not progress.state.done:
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

    async def run(
        self, tasks: AsyncIterator[Task], resume: Mapping[tuple[int, str], Progress] | None = None
    ) -> AsyncIterator[Outcome]:
        """Outcomes in the order they finish, each task's exactly once.

        Reads `tasks` only as fast as searches end, and no outcome waits for the next task to come. Outcomes that
        nobody takes hold up new searches.
        """
        self.progress.update(resume or {})
        source, turn = aiter(tasks), asyncio.Lock()
        outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue(maxsize=self.in_flight)

        async def lane() -> None:
            while True:
                async with turn:
                    task = await anext(source, None)
                if task is None:
                    return
                self.num_started += 1
                await outcomes.put(await self._one(task))

        async def all_lanes() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.in_flight):
                        group.create_task(lane())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from errors.exceptions[0].__cause__
            finally:
                with contextlib.suppress(asyncio.QueueFull):
                    outcomes.put_nowait(None)

        lanes = asyncio.create_task(all_lanes())
        try:
            while not (lanes.done() and outcomes.empty()):
                outcome = await outcomes.get()
                if outcome is None:
                    break
                self.num_finished += 1
                yield outcome
                self.progress.pop(outcome.task.key, None)  # only now: the taker holds the outcome
            await lanes
            assert self.num_started == self.num_finished, (self.num_started, self.num_finished)
        finally:
            lanes.cancel()
            await asyncio.gather(lanes, return_exceptions=True)

    async def _one(self, task: Task) -> Outcome:
        if task.prompt.error is not None:
            return Outcome(task, None, task.prompt.error)
        earlier = self.progress.get(task.key)
        try:
            progress = await search(task, self.policy, self.reward, self.seed, earlier, self._watch)
            best = progress.state.best
            if best is None:
                reason = progress.trace.particle_error or "the reward model gave no reason"
                return Outcome(task, progress, f"no response got a finite reward: {reason}")
            return Outcome(task, progress, None, *await self._judge(task.prompt, best.response))
        except DataError as error:
            return Outcome(task, self.progress.get(task.key), str(error))
        except MethodError as error:
            self._note_failure(task, error)
            return Outcome(task, self.progress.get(task.key), str(error))

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
