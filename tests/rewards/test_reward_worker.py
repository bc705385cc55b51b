"""The thread that scores for many callers."""

import threading

import pytest

from aisp_ray.rewards.base import Scorer, ScoreRequest
from aisp_ray.types import Prompt, Scores
from aisp_ray.worker import RewardWorker


class Gate(Scorer):
    """A scorer that waits to be let through, and remembers the sizes of its batches."""

    def __init__(self, max_requests=None):
        if max_requests:
            self.max_requests = max_requests
        self.batches = []
        self.open = threading.Event()
        self.entered = threading.Event()

    def score(self, requests):
        self.entered.set()
        assert self.open.wait(10)
        self.batches.append(len(requests))
        if any("break" in request.responses for request in requests):
            raise RuntimeError("broken")
        if any("away" in request.responses for request in requests):
            raise ConnectionError("the service is down")
        if any("lose" in request.responses for request in requests):
            return []
        return [Scores(tuple(float(len(text)) for text in request.responses)) for request in requests]

    def stats(self):
        return {"batches": float(len(self.batches))}


def request(*responses):
    return ScoreRequest(Prompt("p", 0, "d", ""), responses)


def waiting(worker, *groups):
    """Submit one request, and the others while it is being scored."""
    first = worker.submit(request("x"))
    assert worker.scorer.entered.wait(10)
    others = [worker.submit(request(*group)) for group in groups]
    return first, others


def test_what_waits_is_scored_in_one_batch():
    worker = RewardWorker(Gate)
    _, futures = waiting(worker, ("a",), ("bb", "c"), ("ddd",))
    worker.scorer.open.set()
    assert [future.result(10).rewards for future in futures] == [(1.0,), (2.0, 1.0), (3.0,)]
    assert worker.scorer.batches == [1, 3]
    assert worker.stats()["num_scored"] == 5
    assert worker.stats()["batches"] == 2
    worker.close()


def test_a_scorer_that_reads_one_by_one_gets_them_so():
    worker = RewardWorker(lambda: Gate(max_requests=1))
    _, futures = waiting(worker, ("a",), ("bb",))
    worker.scorer.open.set()
    assert [future.result(10).rewards for future in futures] == [(1.0,), (2.0,)]
    assert worker.scorer.batches == [1, 1, 1]
    worker.close()


@pytest.mark.parametrize(("word", "text"), [("break", "broken"), ("lose", "0 results for 1 requests")])
def test_a_broken_scorer_tells_its_callers_and_the_thread_goes_on(word, text):
    worker = RewardWorker(lambda: Gate(max_requests=1))
    worker.scorer.open.set()
    with pytest.raises(RuntimeError, match=text):
        worker.submit(request(word)).result(10)
    assert worker.submit(request("a")).result(10).rewards == (1.0,)
    worker.close()


def test_while_a_service_is_away_its_callers_are_told_at_once():
    worker = RewardWorker(Gate)
    _, futures = waiting(worker, ("away",), ("a",))
    worker.scorer.open.set()
    for future in futures:
        with pytest.raises(ConnectionError):
            future.result(10)
    assert worker.scorer.batches == [1, 2]  # not once more for each request
    worker.close()


class Leaver(Scorer):
    """A scorer whose code ends the process, or wants to, for one prompt."""

    def score(self, requests):
        if any(request.prompt.text == "leave" for request in requests):
            raise SystemExit(0)
        return [Scores((1.0,)) for _ in requests]


def test_an_exit_in_a_scorer_fails_its_own_request_alone():
    worker = RewardWorker(Leaver)
    texts = ("stay", "leave", "stay too")
    futures = {text: worker.submit(ScoreRequest(Prompt("p", 0, "d", text), ("a",))) for text in texts}
    with pytest.raises(RuntimeError, match="SystemExit: 0"):
        futures["leave"].result(10)
    assert futures["stay"].result(10).rewards == futures["stay too"].result(10).rewards == (1.0,)
    worker.close()


def test_after_it_was_closed_a_request_fails_at_once():
    worker = RewardWorker(Leaver)
    worker.close()
    with pytest.raises(RuntimeError, match="the reward was closed"):
        worker.submit(request("a")).result(10)


class Sloppy(Scorer):
    """A scorer that forgets a reward or an error text of some prompts."""

    def score(self, requests):
        cut = {"no reward": (1, 0), "no text": (0, 1)}
        found = []
        for one in requests:
            rewards, texts = cut.get(one.prompt.text, (0, 0))
            found.append(Scores((1.0, 2.0)[rewards:], (None, None)[texts:]))
        return found


def test_scores_that_do_not_fit_their_responses_are_an_error_of_that_request_alone():
    worker = RewardWorker(Sloppy)
    texts = ("good", "no reward", "no text")
    futures = {text: worker.submit(ScoreRequest(Prompt("p", 0, "d", text), ("a", "b"))) for text in texts}
    assert futures["good"].result(10).rewards == (1.0, 2.0)
    for text, said in (("no reward", "1 rewards for 2 responses"), ("no text", "1 error texts for 2 responses")):
        with pytest.raises(RuntimeError, match=said):
            futures[text].result(10)
    worker.close()


def test_a_cancelled_request_is_not_scored_and_stops_nobody():
    worker = RewardWorker(Gate)
    _, (gone, kept) = waiting(worker, ("a",), ("bb",))
    assert gone.cancel()
    worker.scorer.open.set()
    assert kept.result(10).rewards == (2.0,)
    assert worker.scorer.batches == [1, 1]
    worker.close()
    assert not worker._thread.is_alive()
