"""One thread with many callers around a loaded model: a policy's engine is stepped, a scorer is given what waits."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aisp_ray.errors import as_exception, is_away
from aisp_ray.policy.base import LoadedPolicy
from aisp_ray.rewards.base import Scorer, ScoreRequest
from aisp_ray.types import Prompt, Proposal, Rollouts, Scores

_T = TypeVar("_T")

_MOST_REQUESTS = 256  # that a scorer is given at a time
Result = tuple[int, Any | BaseException]  # a ticket, and its reply or what it failed with


@dataclass(frozen=True, slots=True)
class _Job:
    request: Any
    future: Future[Any] = field(default_factory=Future)


class Worker(ABC):
    """The one thread that uses a loaded model. `submit` of the subclasses is thread-safe and only enqueues."""

    def __init__(self, name: str, load_seconds: float):
        self.name = name
        self.load_seconds = load_seconds
        self.busy_seconds = 0.0
        self._waiting: queue.Queue[_Job | None] = queue.Queue()
        self._running: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()  # between a job that comes in and the end of the thread
        self._ended: Exception | None = None  # why the thread takes no more jobs
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    def _admit(self, request: Any) -> int:
        """Hand a request to the model; returns its ticket. What it raises is the reply."""

    @abstractmethod
    def _step(self) -> Iterator[Result]:
        """Work on what was admitted; yields the tickets that finished. What it raises ends the thread."""

    def close(self) -> None:
        """End the thread; whoever still waits, and whoever comes later, gets an exception."""
        self._waiting.put(None)
        self._thread.join(timeout=10)

    @property
    def alive(self) -> bool:
        """False once the thread has ended: the model broke, or `close` was called."""
        return self._ended is None

    def stats(self) -> dict[str, float]:
        """Counters since the start, the model's own among them."""
        return {"load_seconds": self.load_seconds, "busy_seconds": self.busy_seconds}

    def _enqueue(self, request: Any) -> Future[Any]:
        """The reply to come; an exception at once if the thread has ended."""
        job = _Job(request)
        with self._lock:
            if self._ended is None:
                self._waiting.put(job)
            else:
                job.future.set_exception(self._ended)
        return job.future

    def _run(self) -> None:
        ended: Exception = RuntimeError(f"the {self.name} was closed")
        try:
            while self._admit_waiting():
                started = time.perf_counter()
                for ticket, result in self._step():
                    _resolve(self._running.pop(ticket), result)
                self.busy_seconds += time.perf_counter() - started
        except BaseException as error:  # the model is broken
            ended = as_exception(error)
            raise
        finally:
            self._end(ended)

    def _end(self, error: Exception) -> None:
        """Fail every caller, now and later. Mark the thread as ended first: a caller that wakes up looks at that."""
        with self._lock:
            self._ended = error
        while not self._waiting.empty():
            job = self._waiting.get()
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        for future in self._running.values():
            future.set_exception(error)
        self._running.clear()

    def _admit_waiting(self) -> bool:
        """Move waiting jobs into the model; block while it has nothing to do. False when closed."""
        while True:
            try:
                job = self._waiting.get(block=not self._running)
            except queue.Empty:
                return True
            if job is None:
                return False
            if not job.future.set_running_or_notify_cancel():  # from here on it cannot be cancelled any more
                continue
            try:
                ticket = self._admit(job.request)
            except Exception as error:
                job.future.set_exception(error)
            else:
                self._running[ticket] = job.future


def _resolve(future: Future[Any], result: Any) -> None:
    if isinstance(result, BaseException):
        future.set_exception(as_exception(result))
    else:
        future.set_result(result)


class PolicyWorker(Worker):
    """Steps a policy's engine: requests of any prompts and iterations run side by side."""

    def __init__(self, load: Callable[[], LoadedPolicy]):
        started = time.perf_counter()
        self.policy = load()
        self.num_generated_tokens = 0
        super().__init__("policy", time.perf_counter() - started)

    def submit(self, prompt: Prompt, proposal: Proposal, seed: int) -> Future[Rollouts]:
        return self._enqueue((prompt, proposal, seed))

    def stats(self) -> dict[str, float]:
        own = {"num_generated_tokens": float(self.num_generated_tokens)}
        return super().stats() | own | self.policy.engine.stats()

    def _admit(self, request: tuple[Prompt, Proposal, int]) -> int:
        return self.policy.engine.submit(self.policy.request(*request))

    def _step(self) -> Iterator[Result]:
        for ticket, result in self.policy.engine.step():
            yield ticket, result if isinstance(result, Exception) else self._finish(result)

    def _finish(self, rollouts: Rollouts) -> Rollouts | Exception:
        self.num_generated_tokens += rollouts.num_generated_tokens
        try:
            return self.policy.finish(rollouts)
        except Exception as error:
            return error


class RewardWorker(Worker):
    """Scores as many waiting requests at a time as the scorer can make use of."""

    def __init__(self, load: Callable[[], Scorer]):
        started = time.perf_counter()
        self.scorer = load()
        self.num_scored = 0
        # a scorer that reads requests one by one gets them so, and each caller has its result at once
        self._most = min(_MOST_REQUESTS, self.scorer.max_requests or _MOST_REQUESTS)
        self._tickets = itertools.count()
        self._admitted: dict[int, ScoreRequest] = {}
        super().__init__("reward", time.perf_counter() - started)

    def submit(self, request: ScoreRequest) -> Future[Scores]:
        return self._enqueue(request)

    def stats(self) -> dict[str, float]:
        return super().stats() | {"num_scored": float(self.num_scored)} | self.scorer.stats()

    def _admit(self, request: ScoreRequest) -> int:
        ticket = next(self._tickets)
        self._admitted[ticket] = request
        return ticket

    def _step(self) -> Iterator[Result]:
        batch = list(itertools.islice(self._admitted, self._most))
        requests = [self._admitted.pop(ticket) for ticket in batch]
        try:
            yield from zip(batch, self._scores(requests), strict=True)
        except BaseException as error:  # SystemExit of somebody's own function among them
            if len(batch) == 1 or is_away(error):
                yield from ((ticket, error) for ticket in batch)
                return
            for ticket, request in zip(batch, requests, strict=True):  # each alone: only the one at fault fails
                try:
                    yield ticket, self._scores([request])[0]
                except BaseException as own:
                    yield ticket, own

    def _scores(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        found = self.scorer.score(requests)
        _check(found, requests)
        self.num_scored += sum(len(request.responses) for request in requests)
        return found


def _check(results: Sequence[Scores], requests: Sequence[ScoreRequest]) -> None:
    """Raises RuntimeError where a scorer, perhaps somebody's own, did not answer all of what it was asked."""
    if len(results) != len(requests):
        raise RuntimeError(f"the scorer returned {len(results)} results for {len(requests)} requests")
    for scores, request in zip(results, requests, strict=True):
        asked = len(request.responses)
        if len(scores.rewards) != asked:
            raise RuntimeError(f"the scorer returned {len(scores.rewards)} rewards for {asked} responses")
        if scores.errors and len(scores.errors) != asked:
            raise RuntimeError(f"the scorer returned {len(scores.errors)} error texts for {asked} responses")


def beside_a_loop(work: Callable[[], _T]) -> _T:
    """Its result: of this thread, or of one of its own where this one runs an event loop already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    outcome: list[_T | BaseException] = []
    done = threading.Event()  # `join` takes a thread for ended where Ctrl-C comes while it waits

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="aisp_ray")
    try:
        thread.start()
        done.wait()
    except KeyboardInterrupt:  # only this thread got it; the work would go on unseen
        _interrupt(thread)
        done.wait()  # a second Ctrl-C does not wait for it
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in a thread, at its next instruction."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt))
