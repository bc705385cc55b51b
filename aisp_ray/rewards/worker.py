"""One thread that scores for many callers at once: whatever is waiting is scored in one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from aisp_ray.rewards.base import Scorer, ScoreRequest
from aisp_ray.types import Scores


class RewardWorker:
    """Owns a scorer and its thread. `submit` is thread-safe and only enqueues."""

    def __init__(self, load: Callable[[], Scorer], max_waiting: int = 256):
        started = time.perf_counter()
        self.scorer = load()
        self.load_seconds = time.perf_counter() - started
        self.busy_seconds = 0.0
        self.num_scored = 0
        self._max_waiting = max_waiting
        self._waiting: queue.Queue[tuple[ScoreRequest, Future[Scores]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="reward", daemon=True)
        self._thread.start()

    def submit(self, request: ScoreRequest) -> Future[Scores]:
        future: Future[Scores] = Future()
        self._waiting.put((request, future))
        return future

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(timeout=10)

    @property
    def alive(self) -> bool:
        """False once the thread has ended: `close` was called."""
        return self._thread.is_alive()

    def stats(self) -> dict[str, float]:
        return {
            "load_seconds": self.load_seconds,
            "busy_seconds": self.busy_seconds,
            "num_scored": float(self.num_scored),
        }

    def _take(self) -> list[tuple[ScoreRequest, Future[Scores]]] | None:
        """Everything that waits now, at least one; None when closed."""
        batch = []
        item = self._waiting.get()
        while item is not None:
            batch.append(item)
            if len(batch) >= self._max_waiting or self._waiting.empty():
                return batch
            item = self._waiting.get()
        self._waiting.put(None)  # so that the next take ends too
        return batch or None

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            started = time.perf_counter()
            self._score(batch)
            self.busy_seconds += time.perf_counter() - started

    def _score(self, batch: list[tuple[ScoreRequest, Future[Scores]]]) -> None:
        try:
            results = self.scorer.score([request for request, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:  # alone, so that only the request at fault fails
                for one in batch:
                    self._score([one])
            return
        for (request, future), scores in zip(batch, results, strict=True):
            self.num_scored += len(request.responses)
            future.set_result(scores)
