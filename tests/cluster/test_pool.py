"""The pool over replicas that live in this process: who gets a call, and what happens when a replica fails it."""

import asyncio

import pytest
import ray.exceptions as rx

from aisp_ray.cluster.failures import CallError
from aisp_ray.cluster.pool import Pool, PoolCall, PoolSettings, Replica
from aisp_ray.errors import DataError, PoolError, StarvationError


class Method:
    def __init__(self, function):
        self.function = function

    def remote(self, *args):
        return asyncio.ensure_future(self.function(*args))


class Handle:
    """An actor handle whose behaviour the backend decides."""

    def __init__(self, name, backend):
        self.name, self.backend = name, backend
        self.killed = False
        self.place, self.load = Method(self._place), Method(self._load)
        self.stats, self.rollout = Method(self._stats), Method(self._rollout)

    async def _place(self):
        await self.backend.places.wait()
        return {"node": "here"}

    async def _load(self):
        return await self.backend.load(self)

    async def _stats(self):
        return await self.backend.stats(self)

    async def _rollout(self, prompt):
        self.backend.calls.append((self.name, prompt))
        return await self.backend.answer(self, prompt)


class Machines:
    """Makes handles. `answer`, `load`, `stats` are what a test replaces."""

    def __init__(self, answer=None, load=None, stats=None):
        self.handles, self.calls = [], []
        self.places = asyncio.Event()
        self.places.set()
        self.answer = answer or self.echo
        self.load = load or self.loads
        self.stats = stats or self.alive

    async def echo(self, handle, prompt):
        await asyncio.sleep(0.001)
        return prompt

    async def loads(self, handle):
        return {}

    async def alive(self, handle):
        return {}

    def create(self, name):
        self.handles.append(Handle(name, self))
        return self.handles[-1]

    def kill(self, handle):
        handle.killed = True


def died():
    return rx.ActorDiedError()


def ask(prompt, cost=1):
    return PoolCall("rollout", (prompt,), cost, prompt, f"rollout of {prompt}")


def settings(low=1, high=1, **more):
    return PoolSettings(name="policy", low=low, high=high, **{"health_seconds": 0.02, **more})


def run(machines, calls, **of_pool):
    """Replies or exceptions of calls sent at once."""

    async def go():
        machines_ = machines()
        pool = Pool(settings(**of_pool), machines_)
        pool.start()
        try:
            replies = await asyncio.gather(*(pool.call(ask(call)) for call in calls), return_exceptions=True)
        finally:
            await pool.close()
        return replies, pool, machines_

    return asyncio.run(asyncio.wait_for(go(), 20))


def test_calls_go_to_the_least_loaded_replica():
    replies, _, machines = run(Machines, [f"p{i}" for i in range(8)], low=4, high=4)
    assert replies == [f"p{i}" for i in range(8)]
    counts = {handle.name: 0 for handle in machines.handles}
    for name, _ in machines.calls:
        counts[name] += 1
    assert sorted(counts.values()) == [2, 2, 2, 2]


def test_a_prompt_comes_back_to_its_replica_unless_another_is_idle():
    async def go():
        machines = Machines()
        pool = Pool(settings(2, 2), machines)
        pool.start()
        await pool.wait_ready()
        a, b = pool.replicas
        await pool.call(ask("x"))
        home, other = (a, b) if machines.calls[-1][0] == a.name else (b, a)
        home.load, other.load = 5, 5
        assert await pool._pick(ask("x", 4)) is home
        home.load = 9
        assert await pool._pick(ask("x", 4)) is home
        home.load = 10
        assert await pool._pick(ask("x", 4)) is other
        home.load, other.load = 1, 0
        assert await pool._pick(ask("x", 4)) is other
        await pool.close()

    asyncio.run(go())


def test_a_replica_that_has_just_answered_is_not_asked_how_it_is():
    pool = Pool(settings(health_seconds=10.0), None)
    replica = Replica("policy-0", None, state="ready", finished=1000.0, checked=980.0)
    assert not pool._is_due(replica, 1009.0)
    assert pool._is_due(replica, 1010.0)  # quiet
    replica.finished = 1038.0
    assert not pool._is_due(replica, 1039.0)
    assert pool._is_due(replica, 1040.0)  # its counters are a minute old
    replica.checked, replica.state = 1039.0, "suspended"
    assert pool._is_due(replica, 1040.0)


def test_calls_of_a_dead_replica_are_answered_by_another():
    def machines():
        async def answer(handle, prompt):
            await asyncio.sleep(0.001)
            if handle.name == "policy-0":
                raise died()
            return prompt

        return Machines(answer)

    replies, pool, made = run(machines, [f"p{i}" for i in range(6)], low=2, high=2)
    assert replies == [f"p{i}" for i in range(6)]
    assert pool.events["ended lost"] == 1
    assert len(made.handles) == 3  # one replacement


def test_a_prompt_that_ends_actors_costs_nobody_else_a_row():
    def machines():
        async def answer(handle, prompt):
            await asyncio.sleep(0.001)
            if prompt == "poison":
                raise died()
            return prompt

        return Machines(answer)

    calls = ["poison", *(f"p{i}" for i in range(20))]
    replies, pool, _ = run(machines, calls, low=2, high=2, infra_retries=3)
    assert isinstance(replies[0], DataError)
    assert "4 policy actors ended while they had this prompt" in str(replies[0])
    assert replies[1:] == calls[1:]
    assert pool.failure is None


@pytest.mark.parametrize(("count", "actors"), [(2, 1), (3, 2), (5, 1), (8, 4)])
def test_prompts_that_end_actors_are_given_up_also_where_only_they_are_left(count, actors):
    def machines():
        async def answer(handle, prompt):
            await asyncio.sleep(0.001)
            if prompt.startswith("poison"):
                raise died()
            return prompt

        return Machines(answer)

    calls = ["good", *(f"poison{i}" for i in range(count))]
    replies, pool, _ = run(machines, calls, low=actors, high=actors, infra_retries=5)
    assert [type(reply) for reply in replies] == [str] + [DataError] * count
    assert pool.failure is None


def test_a_model_that_breaks_for_good_in_mid_run_ends_it():
    def machines():
        async def answer(handle, prompt):
            await asyncio.sleep(0.001)
            if prompt != "good":
                raise died()
            return prompt

        return Machines(answer)

    replies, pool, _ = run(machines, ["good", *(f"p{i}" for i in range(40))], infra_retries=2)
    assert isinstance(pool.failure, PoolError)
    assert sum(isinstance(reply, DataError) for reply in replies) <= 8
    assert replies[0] == "good"


def test_other_calls_beside_poison_are_never_given_up():
    """All calls of a replica die together, as they do in a process."""

    def machines():
        async def answer(handle, prompt):
            if prompt == "poison":
                await asyncio.sleep(0.002)
                handle.gone = True
            for _ in range(50):
                await asyncio.sleep(0.001)
                if getattr(handle, "gone", False):
                    raise died()
            return prompt

        return Machines(answer)

    calls = [*(f"p{i}" for i in range(15)), "poison"]
    replies, _, _ = run(machines, calls, low=1, high=1, infra_retries=2)
    assert [type(reply) for reply in replies] == [str] * 15 + [DataError]


def test_a_preempted_replica_costs_no_strike():
    def machines():
        lost = []

        async def answer(handle, prompt):
            await asyncio.sleep(0.001)
            if len(lost) < 12:
                lost.append(handle)
                error = died()
                error._preempted = True
                raise error
            return prompt

        return Machines(answer)

    replies, pool, _ = run(machines, ["x"], infra_retries=1)
    assert replies == ["x"]
    assert pool.events["ended preempted"] == 12


def test_actors_that_only_die_end_the_run():
    def machines():
        async def answer(handle, prompt):
            await asyncio.sleep(0.001)
            raise died()

        return Machines(answer)

    replies, pool, _ = run(machines, [f"p{i}" for i in range(30)], infra_retries=3)
    assert isinstance(pool.failure, PoolError)
    assert "no call worked" in str(pool.failure)
    assert {type(reply) for reply in replies} <= {PoolError, DataError}


def test_a_hung_replica_is_replaced_and_its_calls_go_elsewhere():
    def machines():
        async def answer(handle, prompt):
            await asyncio.sleep(1e6 if handle.name == "policy-0" else 0.001)
            return prompt

        return Machines(answer)

    replies, pool, made = run(machines, ["a", "b"], low=1, high=1, call_timeout=0.2)
    assert replies == ["a", "b"]
    assert made.handles[0].killed
    assert pool.events["retry lost"] == 2


def test_a_busy_replica_that_makes_progress_is_not_hung():
    def machines():
        async def answer(handle, prompt):
            await asyncio.sleep(0.1 * int(prompt))
            return prompt

        return Machines(answer)

    calls = [str(i) for i in range(1, 8)]
    replies, pool, _ = run(machines, calls, call_timeout=0.3)
    assert replies == calls
    assert not pool.events


def test_an_unreachable_replica_gets_no_calls_until_it_answers():
    def machines():
        state = {"away": True}

        async def answer(handle, prompt):
            await asyncio.sleep(0.001)
            if state["away"]:
                raise rx.ActorUnavailableError("gone for now", b"x" * 16)
            return prompt

        async def stats(handle):
            await asyncio.sleep(0.05)
            state["away"] = False
            return {}

        return Machines(answer, stats=stats)

    replies, pool, made = run(machines, ["a", "b", "c"])
    assert replies == ["a", "b", "c"]
    assert len(made.handles) == 1
    assert len(made.calls) == 6  # each was tried once more, not in a loop
    assert pool.events == {"retry unavailable": 3}


def test_a_wrong_setting_ends_the_run_at_once_with_its_reason():
    def machines():
        async def load(handle):
            raise CallError("settings", "OSError: no such model 'llama'")

        return Machines(load=load)

    replies, _pool, made = run(machines, ["a"])
    assert isinstance(replies[0], PoolError)
    assert "the policy does not load: OSError: no such model 'llama'" in str(replies[0])
    assert len(made.handles) == 1


def test_loading_is_tried_again_elsewhere():
    def machines():
        async def load(handle):
            if handle.name == "policy-0":
                raise died()
            return {"engine": {}}

        return Machines(load=load)

    replies, _pool, made = run(machines, ["a"])
    assert replies == ["a"]
    assert len(made.handles) == 2


def test_an_empty_pool_starves():
    def machines():
        async def answer(handle, prompt):
            handle.backend.places.clear()  # there will be no machine for the replacement
            error = died()
            error._preempted = True
            raise error

        return Machines(answer)

    replies, _, _ = run(machines, ["a"], starvation_timeout=0.2)
    assert isinstance(replies[0], StarvationError)
    assert "1 starting" in str(replies[0])
    assert "run.starvation_timeout_seconds" in str(replies[0])


def test_the_minimum_must_come_in_time():
    async def go():
        machines = Machines()
        machines.places.clear()
        pool = Pool(settings(1, 2, ready_timeout=0.2, ask="1 GPU"), machines)
        pool.start()
        with pytest.raises(StarvationError, match=r"2 starting; one asks for 1 GPU.*run\.ready_timeout_seconds"):
            await pool.wait_ready()
        await pool.close()

    asyncio.run(go())


def test_a_late_replica_is_adopted():
    async def go():
        machines = Machines()
        first = asyncio.Event()

        async def load(handle):
            if handle.name != "policy-0":
                await first.wait()
            return {}

        machines.load = load
        pool = Pool(settings(1, 3), machines)
        pool.start()
        await pool.wait_ready()
        await pool.call(ask("a"))
        assert {name for name, _ in machines.calls} == {"policy-0"}
        first.set()
        await asyncio.sleep(0.05)
        await asyncio.gather(*(pool.call(ask(f"p{i}")) for i in range(6)))
        assert {name for name, _ in machines.calls} == {"policy-0", "policy-1", "policy-2"}
        await pool.close()

    asyncio.run(go())


def test_surplus_replicas_are_released_and_busy_ones_finish_first():
    async def go():
        machines = Machines()
        busy = asyncio.Event()

        async def answer(handle, prompt):
            await busy.wait()
            return prompt

        machines.answer = answer
        pool = Pool(settings(3, 3), machines)
        pool.start()
        await pool.wait_ready()
        calls = [asyncio.ensure_future(pool.call(ask(f"p{i}"))) for i in range(2)]
        await asyncio.sleep(0.02)
        pool.resize(1)
        assert sorted(r.state for r in pool.replicas) == ["draining", "ready"]
        assert sum(handle.killed for handle in machines.handles) == 1
        busy.set()
        assert await asyncio.gather(*calls) == ["p0", "p1"]
        assert [r.state for r in pool.replicas] == ["ready"]
        assert await pool.call(ask("p3")) == "p3"
        await pool.close()

    asyncio.run(go())


def test_a_service_that_is_away_is_waited_for():
    def machines():
        tries = []

        async def answer(handle, prompt):
            tries.append(prompt)
            if len(tries) < 4:
                raise CallError("service", "ConnectionError: refused")
            return prompt

        return Machines(answer)

    replies, pool, _ = run(machines, ["a"], starvation_timeout=2)
    assert replies == ["a"]
    assert pool.events == {"retry service": 3}


def test_a_service_that_stays_away_ends_the_run_for_a_retry():
    def machines():
        async def answer(handle, prompt):
            raise CallError("service", "ConnectionError: refused")

        return Machines(answer)

    replies, _, _ = run(machines, ["a", "b"], starvation_timeout=0.3)
    assert {type(reply) for reply in replies} == {StarvationError}


def test_an_unknown_error_is_tried_once_more_and_is_then_the_rows():
    def machines():
        async def answer(handle, prompt):
            await asyncio.sleep(0.001)
            if prompt == "bad":
                raise CallError("unknown", "KeyError: 'x'")
            return prompt

        return Machines(answer)

    replies, _, made = run(machines, ["a", "bad", "b"])
    assert isinstance(replies[1], DataError)
    assert "KeyError: 'x'" in str(replies[1])
    assert (replies[0], replies[2]) == ("a", "b")
    assert [prompt for _, prompt in made.calls].count("bad") == 2


def test_a_model_that_answers_nothing_ends_the_run_rather_than_making_error_rows():
    def machines():
        async def answer(handle, prompt):
            raise CallError("unknown", "TypeError: wrong head")

        return Machines(answer)

    _replies, pool, _ = run(machines, [f"p{i}" for i in range(20)])
    assert isinstance(pool.failure, PoolError)
    assert "answers no call: TypeError: wrong head" in str(pool.failure)


def test_a_data_error_is_never_retried():
    def machines():
        async def answer(handle, prompt):
            raise DataError("too long")

        return Machines(answer)

    replies, _, made = run(machines, ["a"])
    assert (type(replies[0]), str(replies[0])) == (DataError, "too long")
    assert len(made.calls) == 1
