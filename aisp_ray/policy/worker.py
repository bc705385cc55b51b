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
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def submit(self, prompt: Prompt, proposal: Proposal, seed: int) -> Future[Rollouts]:
        future: Future[Rollouts] = Future()
        self._waiting.put(_Job(prompt, proposal, seed, future))
        return future

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(timeout=10)

    @property
    def alive(self) -> bool:
        """False once the thread has ended: the engine broke, or `close` was called."""
        return self._thread.is_alive()

    def stats(self) -> dict[str, float]:
        return {
            "load_seconds": self.load_seconds,
            "busy_seconds": self.busy_seconds,
            "num_generated_tokens": float(self.num_generated_tokens),
            **self.policy.engine.stats(),
        }

    def _run(self) -> None:
        while self._admit():
            started = time.perf_counter()
            try:
                finished = self.policy.engine.step()
            except Exception as error:  # the engine is broken: every caller is told
                for future in self._running.values():
                    future.set_exception(error)
                self._running.clear()
                raise
            for ticket, result in finished:
                self._resolve(self._running.pop(ticket), result)
            self.busy_seconds += time.perf_counter() - started

    def _admit(self) -> bool:
        """Move waiting jobs into the engine; block while there is nothing to step. False when closed."""
        while True:
            try:
                job = self._waiting.get(block=self.policy.engine.num_pending == 0)
            except queue.Empty:
                return True
            if job is None:
                return False
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
