"""What crosses between the driver and an actor, and how the driver hears of it."""

import asyncio
import dataclasses
import sys
import threading
from concurrent.futures import Future

import numpy as np
import pytest

from aisp_ray.cluster.wire import Replies, pack, unpack
from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.errors import DataError
from aisp_ray.types import Message, Prompt, Proposal, Rollout, Rollouts, Scores

LOG = WeightLog((WeightEntry(0, (0.25, 0.75), (3, 4), 0.7),))


class Reference:
    """What an object reference has of interest here."""

    def __init__(self):
        self.of = Future()

    def future(self):
        return self.of


@pytest.mark.parametrize(
    "value",
    [
        (Prompt("p/test/00000001", 1, "p", "hé", (Message("user", "hé"),), {"a": [1, None]}), Proposal(1, 2), 7),
        Proposal(1, 2, OpenLoop(8, LOG, 0.7), want=frozenset({"logprob"})),
        Scores((1.0, -2.5), (None, "no reward"), seconds=0.5),
        "a text that says __main__",
    ],
)
def test_what_is_unpacked_is_what_was_packed(value):
    assert unpack(pack(value)) == value


def test_arrays_cross():
    sent = Rollouts(0, (Rollout(0, "a", (1,), "stop", 1, prelogits=np.ones((1, 3), np.float32)),), 4)
    assert np.array_equal(unpack(pack(sent)).items[0].prelogits, np.ones((1, 3), np.float32))


def test_a_class_of_a_notebook_crosses_whole(monkeypatch):
    """Another process has another `__main__`."""
    mine = dataclasses.make_dataclass("Mine", [("x", int)])
    mine.__module__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], "Mine", mine, raising=False)
    data = pack((mine(3), 4))
    monkeypatch.undo()
    assert unpack(data)[0].x == 3


def test_what_cannot_leave_its_process_is_the_rows_error():
    with pytest.raises(DataError, match="cannot be sent to another process"):
        pack((Proposal(0, 1), threading.Lock()))


def test_replies_that_come_together_wake_the_loop_once():
    async def go():
        loop, replies = asyncio.get_running_loop(), Replies()
        wakes, real = [], loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: (wakes.append(args), real(*args))
        references = [Reference() for _ in range(20)]
        futures = [replies.future(reference) for reference in references]
        futures[3].cancel()

        def answer():
            for i, reference in enumerate(references):
                reference.of.set_result(i) if i != 5 else reference.of.set_exception(ValueError("five"))

        thread = threading.Thread(target=answer)
        thread.start()
        thread.join()  # the loop stands still meanwhile
        answers = await asyncio.gather(*futures, return_exceptions=True)
        late = Reference()
        future = replies.future(late)
        late.of.set_result("late")
        return answers, await future, len(wakes)

    answers, late, num_wakes = asyncio.run(go())
    assert isinstance(answers[3], asyncio.CancelledError)
    assert str(answers[5]) == "five"
    assert [answer for i, answer in enumerate(answers) if i not in (3, 5)] == [i for i in range(20) if i not in (3, 5)]
    assert (late, num_wakes) == ("late", 2)


def test_a_reply_after_the_end_is_nobodys():
    async def go():
        reference = Reference()
        Replies().future(reference)
        return reference

    asyncio.run(go()).of.set_result(1)
