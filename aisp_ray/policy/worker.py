"""One thread that steps an engine for many callers: requests of any prompts and iterations run side by side."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from aisp_ray.policy.base import LoadedPolicy
from aisp_ray.types import Prompt, Proposal, Rollouts


@dataclass(frozen=True, slots=True)
class _Job:
    prompt: Prompt
    proposal: Proposal
    seed: int
    future: Future[Rollouts]


class PolicyWorker:
    """Owns a loaded policy and its thread. `submit` is thread-safe and only enqueues."""

    def __init__(self, load: Callable[[], LoadedPolicy]):
        started = time.perf_counter()
        self.policy = load()
        self.load_seconds = time.perf_counter() - started
        self.busy_seconds = 0.0
        self.num_generated_tokens = 0
        self._waiting: queue.Queue[_Job | None] = queue.Queue()
        self._running: dict[int, Future[Rollouts]] = {}
        self._lock = threading.Lock()  # between a job that comes in and the end of the thread
        self._ended: Exception | None = None  # why the thread takes no more jobs
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def submit(self, prompt: Prompt, proposal: Proposal, seed: int) -> Future[Rollouts]:
        """The rollouts to come; an exception at once if the thread has ended."""
        future: Future[Rollouts] = Future()
        with self._lock:
            if self._ended is None:
                self._waiting.put(_Job(prompt, proposal, seed, future))
            else:
                future.set_exception(self._ended)
        return future

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(timeout=10)

    @property
    def alive(self) -> bool:
        """False once the thread has ended: the engine broke, or `close` was called."""
        return self._ended is None

    def stats(self) -> dict[str, float]:
        return {
            "load_seconds": self.load_seconds,
            "busy_seconds": self.busy_seconds,
            "num_generated_tokens": float(self.num_generated_tokens),
            **self.policy.engine.stats(),
        }

    def _run(self) -> None:
        ended: Exception = RuntimeError("the policy was closed")
        try:
            while self._admit():
                started = time.perf_counter()
                for ticket, result in self.policy.engine.step():
                    self._resolve(self._running.pop(ticket), result)
                self.busy_seconds += time.perf_counter() - started
        except Exception as error:  # the engine is broken
            ended = error
            raise
        finally:
            self._end(ended)

    def _end(self, error: Exception) -> None:
        """Tell every caller, now and later. First of all that the thread is gone: a caller that wakes up looks."""
        with self._lock:
            self._ended = error
        while not self._waiting.empty():
            job = self._waiting.get()
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        for future in self._running.values():
            future.set_exception(error)
        self._running.clear()

    def _admit(self) -> bool:
        """Move waiting jobs into the engine; block while there is nothing to step. False when closed."""
        while True:
            try:
                job = self._waiting.get(block=self.policy.engine.num_pending == 0)
            except queue.Empty:
                return True
            if job is None:
                return False
            if not job.future.set_running_or_notify_cancel():  # from here on it cannot be cancelled any more
                continue
            try:
                ticket = self.policy.engine.submit(self.policy.request(job.prompt, job.proposal, job.seed))
            except Exception as error:
                job.future.set_exception(error)
            else:
                self._running[ticket] = job.future

    def _resolve(self, future: Future[Rollouts], result: Rollouts | Exception) -> None:
        if isinstance(result, Exception):
            future.set_exception(result)
            return
        self.num_generated_tokens += result.num_generated_tokens
        try:
            future.set_result(self.policy.finish(result))
        except Exception as error:
            future.set_exception(error)
