"""One thread that scores for many callers: as many waiting requests at a time as the scorer can make use of."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from aisp_ray.errors import is_away
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
        # a scorer that reads requests one by one gets them so, and each caller has its result at once
        self._max_waiting = min(max_waiting, getattr(self.scorer, "max_requests", None) or max_waiting)
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
        """Counters since the start, the scorer's own among them."""
        return {
            "load_seconds": self.load_seconds,
            "busy_seconds": self.busy_seconds,
            "num_scored": float(self.num_scored),
            **(self.scorer.stats() if hasattr(self.scorer, "stats") else {}),
        }

    def _take(self) -> list[tuple[ScoreRequest, Future[Scores]]] | None:
        """What waits now, at least one and at most what the scorer takes; None when closed."""
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
            batch = [(request, future) for request, future in batch if future.set_running_or_notify_cancel()]
            if batch:
                self._score(batch)

    def _score(self, batch: list[tuple[ScoreRequest, Future[Scores]]]) -> None:
        started = time.perf_counter()
        try:
            requests = [request for request, _ in batch]
            results = self.scorer.score(requests)
            _check(results, requests)
        except Exception as error:
            if len(batch) == 1 or is_away(error):
                for _, future in batch:
                    future.set_exception(error)
                return
            results = None
        finally:
            self.busy_seconds += time.perf_counter() - started
        if results is None:  # each alone, so that only the request at fault fails
            for one in batch:
                self._score([one])
            return
        for (request, future), scores in zip(batch, results, strict=True):
            self.num_scored += len(request.responses)
            future.set_result(scores)


def _check(results: list[Scores], requests: list[ScoreRequest]) -> None:
    """Raises RuntimeError where a scorer, perhaps somebody's own, did not answer all of what it was asked."""
    if len(results) != len(requests):
        raise RuntimeError(f"the scorer returned {len(results)} results for {len(requests)} requests")
    for scores, request in zip(results, requests, strict=True):
        asked = len(request.responses)
        if len(scores.rewards) != asked:
            raise RuntimeError(f"the scorer returned {len(scores.rewards)} rewards for {asked} responses")
        if scores.errors and len(scores.errors) != asked:
            raise RuntimeError(f"the scorer returned {len(scores.errors)} error texts for {asked} responses")
