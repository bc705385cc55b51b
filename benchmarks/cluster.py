"""What the machines cost when the models cost nothing but time: `python benchmarks/cluster.py [busy overhead ...]`.

Policies and reward models sleep, everything else is real: actors, pools, driver, Ray Data, Parquet. Bars:

    busy       policy actors at least 95 % busy in steady state, for reward times of 20 to 80 % of the policy's
    overhead   the driver spends at most 2 ms of CPU a (prompt, iteration)
    scaling    16 actors do at least 95 % of 16 times what 1 does
    memory     10,000 prompts with driver memory flat within 10 %
    scale      the same and the overhead with hundreds of actors, which here are names in a few processes
    limit      iterations a second: what that many searches could do, and what one driver steers

`scale` and `limit` take sizes; the night of docs/cluster.md is

    python benchmarks/cluster.py scale limit prompts=100000 policies=200 rewards=100

One table in Markdown, with the machine's load: sleeping models tell little on a machine that is busy otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aisp_ray.cluster.session import connect
from aisp_ray.cluster.wire import pack, unpack
from aisp_ray.driver import Driver
from aisp_ray.ledger import Task
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.plan import Plan, RunSettings
from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.types import Prompt, Rollouts
from tests.fakes import SleepEngine, SleepPolicy, SleepReward, SleepScorer

SLOTS, N = 16, 16  # a search fills one actor's slots: one rollout is `STEPS` steps
STEPS = 8
HOSTS = 4  # processes of a pool whose actors are only names
RATES = (100, 200, 400, 800, 1600)  # iterations/s that `limit` asks for


@dataclass(frozen=True)
class Load:
    """What a benchmark lets run. Seconds of one rollout call and of scoring it."""

    actors: int
    rollout_seconds: float
    score_seconds: float
    kappa: int
    prompts: int
    per_actor: int = 4  # searches in flight
    reward_actors: int | None = None


async def drive(load: Load) -> dict[str, float]:
    """Run a load through the driver and its pools; rates of the middle part, when all actors are ready."""
    from aisp_ray.cluster.remote import RemotePolicy, RemoteReward, make_pool

    step = load.rollout_seconds / STEPS
    policy = SleepPolicy(actors=(load.actors,) * 2, num_cpus=0, slots=SLOTS, step_seconds=step, tokens=(STEPS, STEPS))
    rewards = load.reward_actors or load.actors
    reward = SleepReward(actors=(rewards,) * 2, num_cpus=0, call_seconds=0, response_seconds=load.score_seconds / N)
    in_flight = load.per_actor * load.actors
    run = RunSettings()
    policies = make_pool("policy", policy, load.actors, run, in_flight)
    scorers = make_pool("reward", reward, rewards, run, in_flight)
    for pool in (policies, scorers):
        pool.start()
    await asyncio.gather(policies.wait_ready(), scorers.wait_ready())
    driver = Driver(RemotePolicy(policies), RemoteReward(scorers), {}, 0, in_flight)
    method = Aisp(n=N, kappa=load.kappa)
    marks: list[tuple[float, float, int, float, float]] = []
    iterations = 0

    def watch(*_: Any) -> None:
        nonlocal iterations
        iterations += 1

    driver.watch = watch

    async def tasks() -> AsyncIterator[Task]:
        for ordinal in range(load.prompts):
            yield Task(
                Prompt(f"bench/{ordinal:08d}", ordinal, "bench", "a question of some length " * 8), "aisp", method
            )

    async def mark() -> None:
        await policies.refresh()
        stats = [replica.stats for replica in policies.replicas]
        busy, fill = (sum(s[name] for s in stats) for name in ("busy_seconds", "useful_row_steps"))
        marks.append((time.perf_counter(), busy, iterations, fill, time.process_time()))

    finished = 0
    async for _ in driver.run(tasks()):
        finished += 1
        if finished in (load.prompts // 4, load.prompts * 3 // 4):
            await mark()
    for pool in (policies, scorers):
        await pool.close()
    (t0, busy0, k0, fill0, cpu0), (t1, busy1, k1, fill1, cpu1) = marks
    return {
        "busy": (busy1 - busy0) / (t1 - t0) / load.actors,
        "ideal": (fill1 - fill0) * step / SLOTS / (t1 - t0) / load.actors,
        "iterations": (k1 - k0) / (t1 - t0),
        "overhead": (cpu1 - cpu0) / (k1 - k0),
        "wall": (t1 - t0) / (k1 - k0),
    }


class Host:
    """Actors that sleep, any number of them in one process: a call costs the driver what it costs with real ones."""

    def __init__(self, spec: Any):
        self.spec = spec
        self.work = SleepEngine(spec) if isinstance(spec, SleepPolicy) else SleepScorer(spec)

    async def place(self) -> dict[str, Any]:
        return {"node": "here", "pid": os.getpid(), "gpus": []}

    async def load(self) -> dict[str, Any]:
        return {"load_seconds": 0.0}

    async def stats(self) -> dict[str, float]:
        return {"busy_seconds": 0.0, "useful_row_steps": 0.0}

    async def describe(self, prompt: Prompt) -> str:
        return prompt.text

    async def rollout(self, call: bytes) -> bytes:
        prompt, proposal, seed = unpack(call)
        request = SimpleNamespace(prompt=prompt, proposal=proposal, seed=seed)
        items = tuple(self.work._respond(request, particle) for particle in range(proposal.num_samples))
        await asyncio.sleep(self.spec.step_seconds * max(item.num_tokens for item in items))
        return pack(Rollouts(proposal.iteration, items, 8))

    async def score(self, call: bytes) -> bytes:
        prompt, responses = unpack(call)
        await asyncio.sleep(self.spec.call_seconds + len(responses) * self.spec.response_seconds)
        return pack(self.work._score(ScoreRequest(prompt, responses)))


class HostBackend:
    """`pool.Backend`: what it creates shares `HOSTS` processes."""

    def __init__(self, cls: type, spec: Any, calls: int):
        import ray

        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 10_000, "enable_task_events": False}
        host = ray.remote(**options)(Host)
        self.hosts = [host.remote(spec) for _ in range(HOSTS)]
        self.created = 0

    def create(self, name: str) -> Any:
        self.created += 1
        return self.hosts[self.created % HOSTS]

    def kill(self, handle: Any) -> None:
        """It is only a name."""


@contextlib.contextmanager
def hosted() -> Iterator[None]:
    """Pools whose actors are names."""
    from aisp_ray.cluster import remote

    real, remote.RayBackend = remote.RayBackend, HostBackend  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        remote.RayBackend = real  # type: ignore[misc]


def scale(prompts: int = 2000, policies: int = 20, rewards: int = 10) -> list[str]:
    """A whole run, from the prompts to the rows, with so many actors: the driver's CPU and memory."""
    if prompts < 80 * policies:
        raise ValueError(f"prompts={prompts}: give at least {80 * policies}, ten times what is in flight")
    seconds = 8 * policies / 250  # of a rollout; with the scores that asks for 200 iterations/s
    policy = SleepPolicy(num_cpus=0, step_seconds=seconds / STEPS, tokens=(STEPS, STEPS), actors=(policies,) * 2)
    reward = SleepReward(num_cpus=0, call_seconds=seconds / 4, actors=(rewards,) * 2)
    drivers, seen = [], []

    class Watched(Driver):
        def __init__(self, *args: Any):
            super().__init__(*args)
            drivers.append(self)

    def sample() -> None:
        if drivers:
            told = sum(drivers[0].num_iterations.values())
            seen.append((drivers[0].num_finished, told, time.process_time(), time.perf_counter(), _resident()))

    from aisp_ray.pipeline import job

    with tempfile.TemporaryDirectory() as folder, hosted():
        job.Driver = Watched  # type: ignore[misc,assignment]
        settings = RunSettings(in_flight=8 * policies, chunk_rows=256, progress_seconds=60)
        plan = sleeping_plan(folder, prompts, policy, reward, settings, Aisp(n=8, kappa=2))
        with sampling(sample):
            code = run_plan(plan)
        job.Driver = Driver  # type: ignore[misc]
    steady = [mark for mark in seen if 0.15 * prompts <= mark[0] <= 0.85 * prompts]
    (_, told0, cpu0, at0, _), (_, told1, cpu1, at1, _) = steady[0], steady[-1]
    ms, rate = 1000 * (cpu1 - cpu0) / (told1 - told0), (told1 - told0) / (at1 - at0)
    early = max(mark[4] for mark in seen if 0.1 * prompts <= mark[0] <= 0.3 * prompts)
    late = max(mark[4] for mark in seen if mark[0] >= 0.9 * prompts)
    growth = late / early - 1
    return [
        "| prompts | policies, rewards | exit code | iterations/s | driver CPU ms a (prompt, iteration) | driver MB |",
        "|---|---|---|---|---|---|",
        f"| {prompts:,} | {policies}, {rewards} | {code} | {rate:.0f} | {ms:.2f}, <= 2 ms {verdict(ms <= 2)} | "
        f"{late / 2**20:.0f}, {growth:+.1%}, within 10 % {verdict(abs(growth) <= 0.1)} |",
    ]


def limit(prompts: int = 0, policies: int = 20, rewards: int = 10) -> list[str]:
    """What the searches in flight could do if nothing but their sleep took time, against what is done."""
    lines = [
        "| asked for, iterations/s | done | driver CPU of one core | driver CPU ms an iteration |",
        "|---|---|---|---|",
    ]
    for rate in RATES:
        seconds = 8 * policies / rate / 1.25  # a search draws, then is scored in a quarter of that time
        count = max(16 * policies, 4 * rate)
        load = Load(policies, seconds, seconds / 4, kappa=2, prompts=count, per_actor=8, reward_actors=rewards)
        with hosted():
            got = asyncio.run(drive(load))
        share, ms = got["overhead"] * got["iterations"], 1000 * got["overhead"]
        broken = " **(breaks)**" if got["iterations"] < 0.9 * rate else ""
        lines.append(f"| {rate} | {got['iterations']:.0f}{broken} | {share:.0%} | {ms:.2f} |")
    return lines


def busy() -> list[str]:
    lines = ["| reward / policy seconds | policy actors busy | of the sleep asked for | bar |", "|---|---|---|---|"]
    for share in (0.2, 0.5, 0.8):
        got = asyncio.run(drive(Load(actors=4, rollout_seconds=0.4, score_seconds=0.4 * share, kappa=4, prompts=64)))
        lines.append(
            f"| {share:.0%} | {got['busy']:.1%} | {got['ideal']:.1%} | >= 95 % {verdict(got['busy'] >= 0.95)} |"
        )
    return lines


def overhead() -> list[str]:
    lines = ["| searches in flight | driver CPU ms a (prompt, iteration) | iterations/s | bar |", "|---|---|---|---|"]
    for in_flight in (16, 64):
        load = Load(2, 0.0, 0.0, kappa=8, prompts=120, per_actor=in_flight // 2)
        got = asyncio.run(drive(load))
        ms = 1000 * got["overhead"]
        lines.append(f"| {in_flight} | {ms:.2f} | {got['iterations']:.0f} | <= 2 ms {verdict(ms <= 2)} |")
    return lines


def scaling() -> list[str]:
    lines = ["| actors | iterations/s | efficiency | bar |", "|---|---|---|---|"]
    one = 0.0
    for actors in (1, 2, 4, 8, 16):
        load = Load(actors, 1.6, 0.2, kappa=2, prompts=8 * actors, reward_actors=max(1, actors // 4), per_actor=2)
        rate = asyncio.run(drive(load))["iterations"]
        one = one or rate
        bar = f">= 95 % {verdict(rate / one / actors >= 0.95)}" if actors == 16 else ""
        lines.append(f"| {actors} | {rate:.2f} | {rate / one / actors:.1%} | {bar} |")
    return lines


@contextlib.contextmanager
def sampling(sample: Callable[[], None], seconds: float = 0.5) -> Iterator[None]:
    """Call `sample` again and again meanwhile, in a thread; what it raises is raised at the end."""
    done, failed = threading.Event(), []

    def loop() -> None:
        try:
            while not done.wait(seconds):
                sample()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failed:
        raise failed[0]


def sleeping_plan(folder: str, count: int, policy: Any, reward: Any, run: RunSettings, method: Any) -> Plan:
    """One method on so many prompts, which lie in the folder as the rows will."""
    from aisp_ray.data.prompts import Prompts

    path = Path(folder, "prompts.jsonl")
    text = "a question of some length " * 8
    path.write_text("".join(json.dumps({"prompt": f"{text}{i}"}) + "\n" for i in range(count)), encoding="utf-8")
    rest: dict[str, Any] = {"judges": {}, "seed": 0, "limit": None}
    data, out = Prompts(path=str(path)), f"{folder}/out"
    return Plan(methods={"method": method}, policy=policy, reward=reward, data=data, run=run, out=out, **rest)


def run_plan(plan: Plan) -> int:
    from aisp_ray.pipeline import run

    return run(plan)


def memory(count: int = 10_000) -> list[str]:
    """Driver memory through a whole run, from the first committed rows to the last."""
    own, seen = _resident, []
    with tempfile.TemporaryDirectory() as folder:
        policy = SleepPolicy(num_cpus=0.1, step_seconds=0.0, tokens=(1, 2), slots=64, actors=(2, 2))
        reward, settings = SleepReward(num_cpus=0.1, call_seconds=0.0), RunSettings(in_flight=64, chunk_rows=256)
        plan = sleeping_plan(folder, count, policy, reward, settings, BestOfN(n=2, kappa=1))

        def sample() -> None:
            rows = len(list(Path(folder, "out", "rows").glob("*.parquet"))) * 256
            seen.append((rows, own()))

        started = time.perf_counter()
        with sampling(sample):
            code = run_plan(plan)
        seconds = time.perf_counter() - started
    early = max(m for rows, m in seen if 0.1 * count <= rows <= 0.3 * count)
    late = max(m for rows, m in seen if rows >= 0.9 * count)
    growth = late / early - 1
    return [
        "| prompts | exit code | seconds | driver MB at 10-30 % | at the end | growth | bar |",
        "|---|---|---|---|---|---|---|",
        f"| {count:,} | {code} | {seconds:.0f} | {early / 2**20:.0f} | {late / 2**20:.0f} | {growth:+.1%} | "
        f"within 10 % {verdict(abs(growth) <= 0.1)} |",
    ]


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def verdict(holds: bool) -> str:
    return "(holds)" if holds else "**(missed)**"


BENCHMARKS = {"busy": busy, "overhead": overhead, "scaling": scaling, "memory": memory, "scale": scale, "limit": limit}
SIZED = ("scale", "limit")  # those that take sizes


def main(words: list[str]) -> int:
    if words and words[0].startswith("-"):
        print(__doc__)
        return 0
    names = [word for word in words if "=" not in word]
    sizes = {key: int(value) for key, value in (word.split("=") for word in words if "=" in word)}
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    connect("local", {})
    import ray

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"Ray {ray.__version__}, {time.strftime('%Y-%m-%d %H:%M')}")  # fmt: skip
    for name in names or BENCHMARKS:
        before = os.getloadavg()[0]
        lines = BENCHMARKS[name](**(sizes if name in SIZED else {}))
        print(
            f"\n## {name} (load {before:.1f} before, {os.getloadavg()[0]:.1f} after)\n\n" + "\n".join(lines), flush=True
        )
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
