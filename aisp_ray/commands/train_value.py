"""Train a value function of pre-logits: responses from the policy, labels from the reward, one small network.

Prompts are read as for an evaluation; the policy (its own Ray actors, or this process with local=true) draws responses
and hands back their base pre-logits; the reward scores them; `engine.value.fit` does the rest. The file it writes is
what method=re_control reads; its header holds the held-out curve and the whole cost, because a method that learnt
before the test has spent that too. Kong et al., 2024, arXiv 2406.05954.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aisp_ray import config
from aisp_ray.config import ConfigError
from aisp_ray.errors import DataError, LoadError
from aisp_ray.methods._value_file import value_file
from aisp_ray.plan import in_ray_job
from aisp_ray.rng import derive_seed
from aisp_ray.types import Policy, Prompt, Proposal, Reward, Sampling

if TYPE_CHECKING:
    from aisp_ray.engine.value import Example

GROUPS = ("policy", "reward", "data", "run")
_USAGE = """\
python jobs/train_value.py [key=value ...]

Draws responses of a policy, scores them, and trains the value function that method=re_control follows.

  python jobs/train_value.py                                      for the demo models, under a minute
  python jobs/train_value.py policy=llama3_8b reward=ultrarm_13b data=shp data.split=train out=/abs/value.safetensors
  ray job submit --working-dir . -- python jobs/train_value.py out=/abs/value.safetensors
  python jobs/eval.py method=re_control method.re_control.value=/abs/value.safetensors

policy=, reward=, data=, run=: as for jobs/eval.py, with their keys. Other keys (default, meaning):
"""


@dataclass(frozen=True, kw_only=True)
class ValueTraining:
    """Settings of the training of a value function."""

    out: str = "outputs/value.safetensors"  # the file to write
    seed: int = 0  # names all randomness
    limit: int | None = None  # use only the first so many prompts; null uses all
    samples: int = 8  # responses drawn from each prompt; the authors draw 1
    temperature: float = 1.0  # of the draws; 0 is greedy and then samples must be 1
    top_p: float = 1.0  # nucleus mass of the draws
    held_out: float = 0.1  # share of the prompts that the curve is measured on, in (0, 1)
    hidden: int | None = None  # width of the network's layers; null: the pre-logit width
    epochs: int = 20  # passes over the data; the authors make 100
    batch_size: int = 64  # responses; the authors take 512
    learning_rate: float = 1e-3  # of Adam
    terminal: str = "last"  # last | first_compat: the position whose value is fitted to the reward
    in_flight: int = 16  # prompts at a time
    memory_gb: float = 16.0  # stop with an error when the pre-logits (float16) take more than this
    local: bool = False  # models in this process instead of Ray actors

    def __post_init__(self) -> None:
        for name in ("samples", "epochs", "batch_size", "in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it is a share of the prompts in (0, 1)")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"{self.samples} greedy responses would be equal; set samples=1 or temperature above 0")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature is 0 or above, and top_p lies in (0, 1]")
        if self.terminal not in ("last", "first_compat"):
            raise ValueError(f"terminal is {self.terminal!r}; it is last or first_compat")


@dataclass
class Collected:
    """Labelled responses and what they cost."""

    train: list[Example] = dataclasses.field(default_factory=list)
    held_out: list[Example] = dataclasses.field(default_factory=list)
    num_prompts: int = 0
    num_skipped: int = 0
    num_samples: int = 0
    num_generated_tokens: int = 0
    num_reward_calls: int = 0
    policy_seconds: float = 0.0
    reward_seconds: float = 0.0
    num_bytes: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 the command is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "help"} & set(words):
        print(help_text())
        return 0
    try:
        parts, settings = read_command(words)
        problems = [*parts["policy"].check(), *parts["reward"].check(), *parts["data"].check(), *check_out(settings)]
        if problems:
            raise ConfigError("\n".join(problems))
    except ConfigError as error:
        for line in str(error).split("\n"):
            print(f"error: {line}", file=sys.stderr)
        return 2
    try:
        train(parts, settings)
    except (ValueError, LoadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_command(words: Sequence[str]) -> tuple[dict[str, Any], ValueTraining]:
    """The built parts by group, and the settings."""
    picked = config_defaults()
    own: dict[str, Any] = {}
    overrides: dict[str, str] = {}
    known = {field.name for field in dataclasses.fields(ValueTraining)}
    for key, text in config.parse_arguments(words).items():
        if key in GROUPS:
            picked[key] = text
        elif "." in key:
            overrides[key] = text
        elif key in known:
            own[key] = text if key in ("out", "terminal") else config.parse_value(text)
        else:
            raise ConfigError(f"{key}={text}: there is no such key.{config.suggest(key, [*GROUPS, *known])}")
    groups = {group: {name: config.read_choice(group, name)} for group, name in picked.items()}
    for chosen in groups.values():
        for values in chosen.values():
            values.pop("_judges_", None)
    for key, value in overrides.items():
        config.override(groups, key, value)
    parts = {group: config.build(next(iter(chosen.values())), group) for group, chosen in groups.items()}
    target = f"{ValueTraining.__module__}.{ValueTraining.__qualname__}"
    return parts, config.build({"_target_": target, **own}, "train_value")


def config_defaults() -> dict[str, str]:
    import yaml

    return yaml.safe_load((config.conf_folder() / "train_value.yaml").read_text(encoding="utf-8"))


def check_out(settings: ValueTraining) -> list[str]:
    if not settings.out.endswith(".safetensors"):
        return [f"out={settings.out}: the file's name must end in .safetensors"]
    if in_ray_job() and not settings.out.startswith("/"):
        return [
            f"out={settings.out} is relative, and the working folder of a Ray job is thrown away; give an absolute path"
        ]
    return []


def help_text() -> str:
    lines = [_USAGE.rstrip()]
    notes = config.comments(ValueTraining)
    for field in dataclasses.fields(ValueTraining):
        lines.append(f"  {field.name:<14} {field.default!s:<26} {notes[field.name]}")
    return "\n".join(lines)


# ---------------------------------------------------------------- responses and labels


async def collect(prompts: Iterable[Prompt], policy: Policy, reward: Reward, settings: ValueTraining) -> Collected:
    """Labelled pre-logits of the policy's own responses. An unusable prompt or response is left out and counted.

    Raises:
        ValueError: they take more than `memory_gb`.
    """
    found = Collected()
    running: set[asyncio.Task[None]] = set()
    try:
        for prompt in prompts:
            if len(running) >= settings.in_flight:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*done)
            running.add(asyncio.create_task(_one(prompt, (policy, reward), settings, found)))
        await asyncio.gather(*running)
    finally:  # one failed: what the others find is of no use
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    # what finishes first must not decide the order of the data
    for part in (found.train, found.held_out):
        part.sort(key=lambda pair: pair[0])
        part[:] = [example for _, examples in part for example in examples]
    return found


async def _one(prompt: Prompt, models: tuple[Policy, Reward], settings: ValueTraining, found: Collected) -> None:
    """Draw, score and file the responses of one prompt."""
    import numpy as np

    from aisp_ray.engine.value import Example

    policy, reward = models
    if prompt.error is not None:
        found.num_skipped += 1
        return
    sampling = Sampling(settings.temperature, settings.top_p)
    proposal = Proposal(0, settings.samples, sampling=sampling, want=frozenset({"prelogits"}))
    try:
        rollouts = await policy.rollout(prompt, proposal, settings.seed)
        scores = await reward.score(prompt, tuple(item.text for item in rollouts.items))
    except DataError:
        found.num_skipped += 1
        return
    examples = [
        Example(np.asarray(item.prelogits, dtype=np.float16), float(r))
        for item, r in zip(rollouts.items, scores.rewards, strict=True)
        if math.isfinite(r) and item.num_generated_tokens > 0
    ]
    found.num_prompts += 1
    found.num_samples += len(rollouts.items)
    found.num_generated_tokens += rollouts.num_generated_tokens
    found.num_reward_calls += len(scores.rewards)
    found.policy_seconds += rollouts.seconds
    found.reward_seconds += scores.seconds
    found.num_bytes += sum(example.prelogits.nbytes for example in examples)
    if found.num_bytes > settings.memory_gb * 1e9:
        raise ValueError(
            f"the pre-logits of {found.num_prompts} prompts take more than memory_gb={settings.memory_gb:g}; "
            f"lower limit or samples, or raise memory_gb"
        )
    held_out = is_held_out(prompt.prompt_id, settings)
    (found.held_out if held_out else found.train).append((prompt.ordinal, examples))


def is_held_out(prompt_id: str, settings: ValueTraining) -> bool:
    """By name, so that more prompts never move one from one side to the other."""
    return derive_seed(settings.seed, prompt_id, "held out") < settings.held_out * 2**64


# ---------------------------------------------------------------- the job


def train(parts: dict[str, Any], settings: ValueTraining) -> dict[str, Any]:
    """Collect, fit, write the file and its facts beside it as JSON; returns the facts.

    Raises:
        ValueError: too few usable responses.
    """
    from aisp_ray.engine.value import Fit, fit

    found = asyncio.run(_collect_locally(parts, settings)) if settings.local else _collect_on_ray(parts, settings)
    if not found.train or not found.held_out:
        raise ValueError(
            f"{len(found.train)} responses to train on and {len(found.held_out)} held out: too few; "
            f"give more prompts or change held_out"
        )
    width = found.train[0].prelogits.shape[1]
    how = Fit(
        hidden=settings.hidden or width,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        terminal=settings.terminal,
        seed=derive_seed(settings.seed, "value function"),
    )
    print(f"{len(found.train)} responses to train on, {len(found.held_out)} held out; {found.num_bytes / 1e6:.1f} MB")
    started = time.perf_counter()
    function, curve = fit(found.train, found.held_out, how)
    facts = facts_of(found, curve, settings, time.perf_counter() - started)
    path = value_file(settings.out)
    function.save(path, facts)
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    report(facts, str(path))
    return facts


def facts_of(
    found: Collected, curve: list[dict[str, float]], settings: ValueTraining, seconds: float
) -> dict[str, Any]:
    """What the file's header says: settings, curve, cost."""
    cost = {
        name: getattr(found, name)
        for name in ("num_prompts", "num_samples", "num_generated_tokens", "num_reward_calls")
    }
    seconds_of = {"policy": found.policy_seconds, "reward": found.reward_seconds, "fit": seconds}
    cost["num_backward_passes"] = settings.epochs * math.ceil(len(found.train) / settings.batch_size)
    nulls = [{name: None if math.isnan(value) else value for name, value in point.items()} for point in curve]
    return {
        "settings": dataclasses.asdict(settings),
        "num_skipped_prompts": found.num_skipped,
        "cost": cost,
        "seconds": {name: round(value, 3) for name, value in seconds_of.items()},
        "curve": nulls,
    }


def report(facts: dict[str, Any], path: str) -> None:
    """The curve and the cost, for whoever is watching."""
    for epoch, point in enumerate(facts["curve"], start=1):
        correlation = point["held_out_correlation"]
        shown = "undefined" if correlation is None else f"{correlation:.3f}"
        print(
            f"epoch {epoch:>3}  train loss {point['train_loss']:.4f}  held-out loss {point['held_out_loss']:.4f}  "
            f"held-out correlation of V with the reward {shown}"
        )
    print("cost: " + ", ".join(f"{value:,} {name.removeprefix('num_')}" for name, value in facts["cost"].items()))
    print(f"wrote {path}; use it with method=re_control method.re_control.value={path}")


async def _collect_locally(parts: dict[str, Any], settings: ValueTraining) -> Collected:
    from aisp_ray.cluster.local import LocalPolicy, LocalReward
    from aisp_ray.data.stream import rows_locally

    prompts = rows_locally(parts["data"], settings.limit)
    return await collect(prompts, LocalPolicy(parts["policy"]), LocalReward(parts["reward"]), settings)


def _collect_on_ray(parts: dict[str, Any], settings: ValueTraining) -> Collected:
    """Over pools of actors, as an evaluation has them."""
    from aisp_ray.cluster.placement import find_problems, most_actors
    from aisp_ray.cluster.session import connect, nodes_now, quiet_data

    asks = {"policy": parts["policy"], "reward": parts["reward"]}
    opened = connect(parts["run"].address, asks)
    import ray

    try:
        nodes = nodes_now()
        problems = find_problems(asks, nodes)
        if problems:
            raise ValueError("; ".join(problems))
        quiet_data()
        most = most_actors(asks, sum(node.num_cpus * node.copies for node in nodes))
        return asyncio.run(_collect_over_pools(parts, settings, most))
    finally:
        if opened:
            ray.shutdown()


async def _collect_over_pools(parts: dict[str, Any], settings: ValueTraining, most: dict[str, int]) -> Collected:
    from aisp_ray.cluster.models import RemotePolicy, RemoteReward, make_pool
    from aisp_ray.data.stream import stream_prompts

    pools = {
        kind: make_pool(kind, parts[kind], (kind, most[kind]), parts["run"], settings.in_flight)
        for kind in ("policy", "reward")
    }
    try:
        for pool in pools.values():
            pool.start()
        await asyncio.gather(*(pool.wait_ready() for pool in pools.values()))
        prompts = await asyncio.to_thread(list, stream_prompts(parts["data"], settings.limit))
        return await collect(prompts, RemotePolicy(pools["policy"]), RemoteReward(pools["reward"]), settings)
    finally:
        for pool in pools.values():
            await pool.close()
