"""An elastic pool of equal replicas: routing, failures, replacement. asyncio; Ray only behind `Backend`.

A replica is starting (waits for a machine), loading, ready, suspended (cannot be reached, may come back), draining
(gets no new calls) or dead. All that the minimum does not need is asked for at once: pending actors are the demand that
an autoscaler sees, and each is adopted when it is there. Calls are pure, so a lost one is sent again elsewhere.

A call whose replica dies under it gets a strike. From the second on it is quarantined: quarantined calls run one at a
time, each until it is answered or given up, so that a prompt that ends processes costs nobody else a row; after
`infra_retries` strikes it becomes an error row.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from aisp_ray.cluster.failures import CallError, read_error
from aisp_ray.cluster.wire import Replies
from aisp_ray.errors import DataError, PoolError, StarvationError

log = logging.getLogger(__name__)

_LOAD_ATTEMPTS = 3  # in a row, for a model that may load on another machine
_UNKNOWN_RETRIES = 1
_CHECK_SECONDS = 5.0  # at most, for the counters of all replicas
_COUNTERS_EVERY = 6  # health checks of a replica that is known to be alive are so many times rarer
_HOPELESS = 8  # calls that failed, or were given up, without one that worked: the model is at fault, not the rows
_LOAD = operator.attrgetter("load")
_HOMES = 16384  # prompts whose replica is remembered: more than are in flight


class Backend(Protocol):
    """What makes and ends replicas."""

    def create(self, name: str) -> Any:
        """A handle whose methods' `remote(...)` return awaitables."""

    def kill(self, handle: Any) -> None: ...


@dataclass(frozen=True)
class PoolSettings:
    """Bounds of a pool, from `RunSettings` and a model's `Placement`."""

    name: str  # policy, reward, or a judge's name: what messages call it
    low: int = 1
    high: int = 1
    ready_timeout: float = 900.0  # seconds
    call_timeout: float = 1800.0  # seconds without any finished call of a busy replica
    starvation_timeout: float = 1800.0  # seconds
    infra_retries: int = 5
    health_seconds: float = 10.0
    ask: str = ""  # resources of one actor in words


@dataclass(eq=False)
class Replica:
    """One actor as the pool sees it."""

    name: str
    handle: Any
    state: str = "starting"
    load: int = 0  # particles sent and not yet back
    calls: dict[asyncio.Future[Any], Sent] = field(default_factory=dict)
    born: float = field(default_factory=time.monotonic)
    placed: float | None = None
    ready: float | None = None
    ended: float | None = None
    ended_by: tuple[str, str] = ("", "")  # kind, text
    progressed: float = 0.0  # when it last finished a call, or got one while idle
    finished: float = 0.0  # when it last answered a call
    checked: float = 0.0  # when its counters were last asked for
    facts: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)
    num_calls: int = 0
    checking: bool = False


@dataclass(frozen=True)
class PoolCall:
    """What a replica is asked: for routing, and for saying who holds what."""

    method: str
    args: tuple[Any, ...]
    cost: int  # particles
    key: str  # prompt id: its prefix is cached where it ran before
    what: str  # in words


@dataclass(frozen=True, slots=True)
class Sent:
    """A call that a replica holds."""

    call: PoolCall
    at: float  # time.monotonic()


class Pool:
    """Replicas of one model. `call` is the only way in."""

    def __init__(self, settings: PoolSettings, backend: Backend):
        self.settings = settings
        self.replicas: list[Replica] = []
        self.gone: list[Replica] = []
        self.events: Counter[str] = Counter()  # retries by kind, lost and replaced replicas
        self.failure: Exception | None = None
        self.count: Callable[[str, str], None] = lambda event, kind: None  # called with each of `events`
        self._backend = backend
        self._wanted = settings.high
        self._serial = 0
        self._homes: OrderedDict[str, Replica] = OrderedDict()
        self._waiters: list[asyncio.Future[None]] = []
        self._quarantine = asyncio.Lock()
        self._closed = False
        self._empty_since: float | None = None
        self._was_ready = False  # before that, `wait_ready` is who gives up
        self._num_good = 0
        self._num_unknown = 0
        self._deaths = 0  # since a call last worked, or a prompt was found to be their cause
        self._given_up = 0  # prompts, since a call last worked
        self._load_failures = 0  # in a row
        self._background: set[asyncio.Task[None]] = set()
        self._replies = Replies()

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Ask for all replicas; returns at once."""
        self._empty_since = time.monotonic()
        for _ in range(self._wanted):
            self._spawn()
        self._run(self._supervise())

    async def wait_ready(self) -> None:
        """Until the minimum is ready.

        Raises:
            PoolError: the model does not load.
            StarvationError: not there within the time allowed.
        """
        deadline = time.monotonic() + self.settings.ready_timeout
        while len(self._in("ready")) < min(self.settings.low, self._wanted):
            left = deadline - time.monotonic()
            if left <= 0:
                raise StarvationError(self._waited_for(self.settings.ready_timeout, "run.ready_timeout_seconds"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._change()

    def resize(self, wanted: int) -> None:
        """Keep at most `wanted` replicas, at least 1: those not there yet go first, then idle ones; busy ones drain."""
        self._wanted = max(1, min(wanted, self._wanted))
        order = {"starting": 0, "loading": 1, "suspended": 2, "ready": 3}
        surplus = sorted(self._in(*order), key=lambda r: (order[r.state], r.load))
        for replica in surplus[: max(0, len(surplus) - self._wanted)]:
            if replica.load:
                replica.state = "draining"
            else:
                self._end(replica, "released", "no more work for it")

    async def refresh(self) -> None:
        """Fetch every replica's counters now."""
        checks = [asyncio.ensure_future(self._check(r)) for r in self._in("ready", "draining") if not r.checking]
        if checks:
            await asyncio.wait(checks, timeout=_CHECK_SECONDS)

    async def close(self) -> None:
        """End all replicas; calls that still wait are told so."""
        self._closed = True
        self._notify()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for replica in list(self.replicas):
            self._end(replica, "released", "the run is over")

    # ------------------------------------------------------------ calls

    async def call(self, call: PoolCall) -> Any:
        """The reply of some replica.

        Raises:
            DataError: the row is at fault, or it ended too many replicas.
            PoolError, StarvationError: the run cannot go on.
        """
        strikes, unknowns, away_since = 0, 0, None
        async with contextlib.AsyncExitStack() as alone:
            while True:
                replica = await self._pick(call)
                try:
                    reply = await self._send(replica, call)
                except Exception as error:
                    kind, text = self._sort(replica, error)
                else:
                    self._num_good += 1
                    self._deaths = self._given_up = 0
                    return reply
                if kind == "data":
                    raise DataError(text)
                self._note("retry", kind)
                if kind in ("lost", "broken"):
                    strikes += 1
                    if strikes > self.settings.infra_retries:
                        raise self._give_up(strikes, text)
                    if strikes == 2:
                        await alone.enter_async_context(self._quarantine)
                elif kind == "unknown":
                    unknowns += 1
                    self._fail_if_hopeless(text)
                    if unknowns > _UNKNOWN_RETRIES:
                        raise DataError(f"the {self.settings.name} failed on this prompt: {text}")
                elif kind == "service":
                    away_since = away_since or time.monotonic()
                    await self._wait_for_service(away_since, text)

    async def ask(self, method: str, *args: Any) -> Any:
        """A question to any ready replica, beside its work."""
        await self.wait_ready()
        return await getattr(self._in("ready")[0].handle, method).remote(*args)

    async def _pick(self, call: PoolCall) -> Replica:
        while not (ready := [replica for replica in self.replicas if replica.state == "ready"]):
            await self._change()
        if self.failure:
            raise self.failure
        least = min(ready, key=_LOAD)  # of hundreds, for every call
        home = self._homes.get(call.key)
        if home is not None and home.state == "ready" and least.load > 0 and home.load <= least.load + call.cost:
            least = home  # it holds the prompt's prefix and mean; worth one call's imbalance, never an idle replica
        self._homes[call.key] = least
        self._homes.move_to_end(call.key)
        if len(self._homes) > _HOMES:
            self._homes.popitem(last=False)
        return least

    async def _send(self, replica: Replica, call: PoolCall) -> Any:
        now = time.monotonic()
        if not replica.calls:
            replica.progressed = now
        reply = self._replies.future(getattr(replica.handle, call.method).remote(*call.args))
        replica.calls[reply] = Sent(call, now)
        replica.load += call.cost
        try:
            answer = await reply
            replica.finished = time.monotonic()
            return answer
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if not reply.cancelled() or (own is not None and own.cancelling()):
                raise
            if self.failure:
                raise self.failure from None
            raise CallError(*replica.ended_by) from None
        finally:
            replica.progressed = time.monotonic()
            replica.num_calls += 1
            del replica.calls[reply]
            replica.load -= call.cost
            if replica.state == "draining" and not replica.calls:
                self._end(replica, "released", "no more work for it")

    def _sort(self, replica: Replica, error: Exception) -> tuple[str, str]:
        """What an exception means for the call; deals with the replica."""
        if self.failure:
            raise self.failure
        kind, text = read_error(error)
        if kind in ("lost", "preempted", "broken"):
            self._died(replica, kind, text)
        elif kind == "unavailable" and replica.state == "ready":
            replica.state = "suspended"
            self._look_empty()
            self._run(self._check(replica))
        return kind, text

    def _give_up(self, strikes: int, text: str) -> Exception:
        """What a call ends with whose prompt ended too many replicas: they count no longer against the model."""
        self._given_up += 1
        if self._num_good:
            self._deaths = 0
        if self._given_up > _HOPELESS:
            return self._fail(PoolError(f"{self._given_up} prompts in a row ended {self.settings.name} actors: {text}"))
        return DataError(f"{strikes} {self.settings.name} actors ended while they had this prompt: {text}")

    def _fail_if_hopeless(self, text: str) -> None:
        self._num_unknown += 1
        if not self._num_good and self._num_unknown >= _HOPELESS:
            raise self._fail(PoolError(f"the {self.settings.name} answers no call: {text}"))

    async def _wait_for_service(self, since: float, text: str) -> None:
        waited = time.monotonic() - since
        if waited > self.settings.starvation_timeout:
            raise self._fail(StarvationError(f"the {self.settings.name}'s service was away for {waited:.0f} s: {text}"))
        if waited == 0 or self.events["retry service"] in (1, 10, 100):
            log.warning("%s: its service is away, waiting: %s", self.settings.name, text)
        await asyncio.sleep(min(30.0, max(0.2, waited / 2), self.settings.starvation_timeout / 4))

    # ------------------------------------------------------------ replicas

    def _in(self, *states: str) -> list[Replica]:
        return [replica for replica in self.replicas if replica.state in states]

    def _spawn(self) -> None:
        name = f"{self.settings.name}-{self._serial}"
        self._serial += 1
        replica = Replica(name, self._backend.create(name))
        self.replicas.append(replica)
        self._run(self._bring_up(replica))

    async def _bring_up(self, replica: Replica) -> None:
        try:
            replica.facts.update(await replica.handle.place.remote())
            if replica.state != "starting":
                return
            replica.state, replica.placed = "loading", time.monotonic()
            self._notify()
            facts = await asyncio.wait_for(_awaitable(replica.handle.load.remote()), self.settings.ready_timeout)
        except Exception as error:
            if replica.state in ("starting", "loading"):
                await self._not_loaded(replica, error)
            return
        if replica.state != "loading":
            return
        replica.facts.update(facts)
        replica.state, replica.ready = "ready", time.monotonic()
        self._load_failures = 0
        self._was_ready = True
        self._empty_since = None
        log.info("%s is ready after %.1f s", replica.name, replica.ready - replica.born)
        self._notify()

    async def _not_loaded(self, replica: Replica, error: Exception) -> None:
        late = isinstance(error, TimeoutError)
        kind, text = ("load", f"not loaded in {self.settings.ready_timeout:.0f} s") if late else read_error(error)
        self._end(replica, kind, text)
        if kind == "preempted":
            self._spawn()
            return
        self._load_failures += 1
        if kind == "settings" or self._load_failures >= _LOAD_ATTEMPTS:
            if self._in("ready", "suspended"):
                log.warning("%s could not be replaced: %s", replica.name, text)
            else:
                self._fail(PoolError(f"the {self.settings.name} does not load: {text}"))
            return
        log.warning("%s did not load, trying again: %s", replica.name, text.splitlines()[0])
        await asyncio.sleep(min(2.0**self._load_failures, 30.0))
        self._spawn()

    def _died(self, replica: Replica, kind: str, text: str) -> None:
        """Replace a replica, once, however many of its calls report the death."""
        if replica.state == "dead":
            return
        self._end(replica, kind, text)
        if kind != "preempted":
            self._deaths += 1
        if self._deaths > self.settings.infra_retries + 1 + 2 * self.settings.high:
            self._fail(PoolError(f"{self._deaths} {self.settings.name} actors ended and no call worked: {text}"))
        elif len(self._in("starting", "loading", "ready", "suspended")) < self._wanted:
            self._spawn()

    def _end(self, replica: Replica, kind: str, text: str) -> None:
        if replica.state == "dead":
            return
        if kind != "released":
            self._note("ended", kind)
            reason = text.splitlines()[0]
            log.warning("%s ended (%s), %d calls go elsewhere: %s", replica.name, kind, len(replica.calls), reason)
        replica.state, replica.ended, replica.ended_by = "dead", time.monotonic(), (kind, text)
        self.replicas.remove(replica)
        self.gone.append(replica)
        with contextlib.suppress(Exception):
            self._backend.kill(replica.handle)
        for reply in list(replica.calls):
            reply.cancel()
        replica.handle = None
        self._look_empty()
        self._notify()

    def _look_empty(self) -> None:
        if not self._in("ready") and self._empty_since is None:
            self._empty_since = time.monotonic()

    # ------------------------------------------------------------ supervision

    async def _supervise(self) -> None:
        s = self.settings
        pause = max(0.05, min(s.health_seconds, s.call_timeout / 4, s.starvation_timeout / 4))
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            for replica in self._in("ready", "suspended", "draining"):
                if not replica.checking and self._is_due(replica, now):
                    self._run(self._check(replica))
            for replica in self._in("ready", "suspended", "draining"):
                if replica.calls and now - replica.progressed > s.call_timeout:
                    held = ", ".join(sent.call.what for sent in list(replica.calls.values())[:3])
                    text = f"no call finished for {s.call_timeout:.0f} s (it holds {held}; run.call_timeout_seconds)"
                    self._died(replica, "lost", text)
            waited = any(not waiter.done() for waiter in self._waiters)
            if waited and self._was_ready and self._empty_since is not None:
                empty = now - self._empty_since
                if empty > s.starvation_timeout:
                    self._fail(StarvationError(self._waited_for(empty, "run.starvation_timeout_seconds")))

    def _is_due(self, replica: Replica, now: float) -> bool:
        """Whether to ask a replica how it is: one that has just finished a call is alive, and counters can wait."""
        pause = self.settings.health_seconds
        alive = replica.state != "suspended" and now - replica.finished < pause
        return not alive or now - replica.checked >= _COUNTERS_EVERY * pause

    async def _check(self, replica: Replica) -> None:
        """Ask for its counters; a replica that cannot be reached gets no calls until it answers."""
        replica.checking, replica.checked = True, time.monotonic()
        try:
            reply = _awaitable(replica.handle.stats.remote())
            replica.stats = await asyncio.wait_for(reply, 3 * self.settings.health_seconds)
        except TimeoutError:
            kind = "unavailable"
        except Exception as error:
            kind, text = read_error(error)
            if kind in ("lost", "preempted", "broken"):
                self._died(replica, kind, text)
        else:
            kind = "ok"
        finally:
            replica.checking = False
        if kind == "unavailable" and replica.state == "ready":
            replica.state = "suspended"
            self._look_empty()
        elif kind == "unavailable" and replica.state == "suspended" and not replica.calls:
            if self._since_seen(replica) > self.settings.call_timeout:
                self._died(replica, "lost", "it could not be reached any more")
        elif kind == "ok" and replica.state == "suspended":
            replica.state = "ready"
            self._empty_since = None
            self._notify()

    def _since_seen(self, replica: Replica) -> float:
        return time.monotonic() - max(replica.progressed, replica.ready or 0.0)

    def _change(self) -> asyncio.Future[None]:
        """Done when something about the replicas changes. Made before anything is awaited, so that none is missed."""
        if self.failure or self._closed:
            raise self.failure or PoolError(f"the {self.settings.name} pool is closed")
        self._waiters = [waiter for waiter in self._waiters if not waiter.done()]
        self._waiters.append(asyncio.get_running_loop().create_future())
        return self._waiters[-1]

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if self.failure:
                waiter.set_exception(self.failure)
            else:
                waiter.set_result(None)

    def _fail(self, error: Exception) -> Exception:
        """End the pool; returns the error that ends it, which is the first one."""
        self.failure = first = self.failure or error
        self._notify()
        for replica in self.replicas:
            for reply in list(replica.calls):
                reply.cancel()
        return first

    def _waited_for(self, seconds: float, key: str) -> str:
        s, states = self.settings, Counter(replica.state for replica in self.replicas)
        there = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
        return (
            f"{s.name}: fewer than {s.low} of its actors ready after {seconds:.0f} s ({there}; one asks for {s.ask}); "
            f"see what the cluster waits for with `ray status`, or wait longer ({key})"
        )

    def _note(self, event: str, kind: str) -> None:
        self.events[f"{event} {kind}"] += 1
        self.count(event, kind)

    def _run(self, job: Awaitable[None]) -> None:
        task = asyncio.ensure_future(job)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _awaitable(reply: Awaitable[Any]) -> Any:
    return await reply
