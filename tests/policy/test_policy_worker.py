"""The thread that steps an engine for many callers."""

import threading

import pytest

from aisp_ray.cluster.actors import PolicyActor
from aisp_ray.cluster.failures import CallError
from aisp_ray.types import Prompt, Proposal, Rollouts
from aisp_ray.worker import PolicyWorker

PROMPT = Prompt("p", 0, "d", "")
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Gated:
    """A policy and its engine: each step waits to be let through; one that is told to breaks."""

    fingerprint: dict = {}  # noqa: RUF012

    def __init__(self):
        self.engine = self
        self.go = threading.Semaphore(0)
        self.entered = threading.Event()
        self.broken = False
        self.tickets = []

    def request(self, prompt, proposal, seed):
        return proposal.iteration

    def submit(self, iteration):
        self.tickets.append(iteration)
        return iteration

    def step(self):
        self.entered.set()
        assert self.go.acquire(timeout=10)
        if self.broken:
            raise RuntimeError("the engine broke")
        done, self.tickets = self.tickets, []
        return [(iteration, Rollouts(iteration, (), 0)) for iteration in done]

    def finish(self, rollouts):
        return rollouts

    @property
    def num_pending(self):
        return len(self.tickets)

    def stats(self):
        return {}


@pytest.fixture
def worker():
    worker = PolicyWorker(Gated)
    yield worker
    worker.policy.go.release(100)
    worker.close()


def submit(worker, iteration):
    return worker.submit(PROMPT, Proposal(iteration, 1), 0)


def test_a_caller_that_is_cancelled_stops_nobody(worker):
    first = submit(worker, 0)
    assert worker.policy.entered.wait(10)
    waiting, kept = submit(worker, 1), submit(worker, 2)
    assert waiting.cancel()
    assert not first.cancel()  # the engine has it already
    worker.policy.go.release(2)
    assert [first.result(10).iteration, kept.result(10).iteration] == [0, 2]
    assert worker.alive
    assert 1 not in worker.policy.tickets


def test_once_the_engine_broke_all_callers_are_told_also_later_ones(worker):
    running = submit(worker, 0)
    assert worker.policy.entered.wait(10)
    waiting = submit(worker, 1)
    worker.policy.broken = True
    worker.policy.go.release()
    for future in (running, waiting):
        with pytest.raises(RuntimeError, match="the engine broke"):
            future.result(10)
    with pytest.raises(RuntimeError, match="the engine broke"):
        submit(worker, 2).result(10)


def test_a_caller_that_wakes_up_sees_that_the_thread_has_ended(worker):
    """Or else an actor with a dead engine would be kept, and its prompts be at fault."""
    seen = []
    future = submit(worker, 0)
    future.add_done_callback(lambda _: seen.append(worker.alive))
    assert worker.policy.entered.wait(10)
    worker.policy.broken = True
    worker.policy.go.release()
    actor = PolicyActor(None, "policy-0")
    actor.worker = worker
    with pytest.raises(CallError, match="the engine broke") as caught:
        actor._wait(future)
    assert caught.value.kind == "broken"
    assert seen == [False]


def test_a_worker_that_is_closed_leaves_nobody_waiting(worker):
    running = submit(worker, 0)
    assert worker.policy.entered.wait(10)
    worker._waiting.put(None)  # as `close` does, which would wait for the step to end
    left = submit(worker, 1)
    worker.policy.go.release()
    assert running.result(10).iteration == 0
    for future in (left, submit(worker, 2)):
        with pytest.raises(RuntimeError, match="the policy was closed"):
            future.result(10)
