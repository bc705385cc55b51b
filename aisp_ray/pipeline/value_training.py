"""Training a value function of pre-logits: responses from the policy, labels from the reward, one small network.

Prompts are read as for an evaluation; the policy draws responses and hands back their base pre-logits; the reward
scores them; `controls.value.fit` does the rest. The file it writes is what method=re_control reads; its header has the
held-out curve and the whole cost, because a method that learnt before the test has spent that too. Kong et al., 2024,
arXiv 2406.05954.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aisp_ray.cluster.models import Models
from aisp_ray.cluster.opening import open_models
from aisp_ray.controls.value_file import value_file
from aisp_ray.data.base import DataSpec
from aisp_ray.driver import Driver
from aisp_ray.errors import OK
from aisp_ray.ledger import Progress, Task, Trace
from aisp_ray.methods.base import Info, Method, State
from aisp_ray.pipeline.exits import Ending
from aisp_ray.pipeline.progress import Screen
from aisp_ray.pipeline.value_parts import Parts
from aisp_ray.plan import RunSettings, describe
from aisp_ray.policy.base import PolicySpec
from aisp_ray.results import null
from aisp_ray.rewards.base import RewardSpec
from aisp_ray.rng import derive_seed
from aisp_ray.types import Prompt, Proposal, Rollouts, Sampling, Scores

if TYPE_CHECKING:
    from aisp_ray.controls.value import Example


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
    memory_gb: float = 16.0  # stop with an error when the pre-logits (float16) take more than this
    local: bool = False  # models in this process instead of Ray actors

    def __post_init__(self) -> None:
        for name in ("samples", "epochs", "batch_size"):
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

    by_prompt: dict[tuple[bool, int], list[Example]] = dataclasses.field(default_factory=dict)  # held out?, ordinal
    traces: list[Trace] = dataclasses.field(default_factory=list)  # of the prompts that were answered
    num_skipped: int = 0
    num_bytes: int = 0

    def add(self, ordinal: int, held_out: bool, examples: list[Example]) -> None:
        """The responses of one prompt."""
        self.by_prompt[held_out, ordinal] = examples
        self.num_bytes += sum(example.prelogits.nbytes for example in examples)

    def total(self, name: str) -> float:
        """Sum of a column of the ledger."""
        return sum(getattr(trace, name) for trace in self.traces)

    @property
    def train(self) -> list[Example]:
        return self._in_order(False)

    @property
    def held_out(self) -> list[Example]:
        return self._in_order(True)

    def _in_order(self, held_out: bool) -> list[Example]:
        """By prompt: what finishes first must not decide the order of the data."""
        keys = sorted(key for key in self.by_prompt if key[0] == held_out)
        return [example for key in keys for example in self.by_prompt[key]]


@dataclass(frozen=True)
class ValuePlan:
    """Everything a training needs."""

    policy: PolicySpec
    reward: RewardSpec
    data: DataSpec
    run: RunSettings
    settings: ValueTraining
    judges: Mapping[str, RewardSpec] = dataclasses.field(default_factory=dict)

    @property
    def local(self) -> bool:
        return self.settings.local

    @property
    def num_draws(self) -> int:
        return self.settings.samples


def train(plan: ValuePlan) -> int:
    """Collect, fit, write the file and its facts beside it as JSON; returns the exit code (`pipeline.exits`)."""
    screen = Screen(every=plan.run.progress_seconds, as_json=plan.run.json_logs)
    ending = Ending(screen, plan.settings.out)

    found, parts = Collected(), Parts(value_file(plan.settings.out), _identity(plan))

    async def collecting(models: Models) -> int:
        await models.ready()
        prompts = await asyncio.to_thread(_read, plan)
        left = await asyncio.to_thread(take_kept, parts, prompts, plan.settings, found)
        if len(left) < len(prompts):
            screen.say(f"resuming: the responses of {len(prompts) - len(left)} of {len(prompts)} prompts are there")
        await collect(left, models, plan.settings, found, parts)
        return OK

    async def fitting() -> int:
        await asyncio.to_thread(fit_and_write, found, plan.settings)
        return OK

    async def main() -> int:
        async with open_models(plan, screen.say) as models:
            code = await ending.guard(collecting(models))
        code = code or await ending.guard(fitting())  # the models are not needed any more
        if code == OK:
            parts.remove()
        return code

    return ending.run(main)


def _read(plan: ValuePlan) -> list[Prompt]:
    from aisp_ray.data.stream import rows_locally, stream_prompts

    if plan.local:
        return list(rows_locally(plan.data, plan.settings.limit))
    return list(stream_prompts(plan.data, plan.settings.limit))


@dataclass(frozen=True)
class _Draw(Method):
    """Responses of the policy itself with their pre-logits, once."""

    settings: ValueTraining

    def init(self, prompt: Prompt, seed: int) -> State:
        return State(prompt.prompt_id, seed)

    def ask(self, state: State) -> Proposal:
        sampling = Sampling(self.settings.temperature, self.settings.top_p)
        return Proposal(0, self.settings.samples, sampling=sampling, want=frozenset({"prelogits"}))

    def tell(self, state: State, rollouts: Rollouts, scores: Scores) -> tuple[State, Info]:
        return dataclasses.replace(state, iteration=1, done=True), {}


def _identity(plan: ValuePlan) -> dict[str, Any]:
    """What decides the responses of a prompt and their labels."""
    drawn = {name: getattr(plan.settings, name) for name in ("seed", "samples", "temperature", "top_p")}
    return {**drawn, **{name: describe(getattr(plan, name)) for name in ("policy", "reward", "data")}}


def take_kept(parts: Parts, prompts: Sequence[Prompt], settings: ValueTraining, found: Collected) -> list[Prompt]:
    """Add what an earlier training left; returns the prompts that are still to be answered."""
    names = {prompt.ordinal: prompt.prompt_id for prompt in prompts}
    there = set()
    for ordinal, prompt_id, examples, trace in parts.load():
        if names.get(ordinal) == prompt_id:
            there.add(ordinal)
            found.add(ordinal, is_held_out(prompt_id, settings), examples)
            found.traces.append(trace)
    return [prompt for prompt in prompts if prompt.ordinal not in there]


async def collect(
    prompts: Iterable[Prompt],
    models: Models,
    settings: ValueTraining,
    found: Collected,
    parts: Parts | None = None,
) -> None:
    """Add labelled pre-logits of the policy's own responses; an unusable prompt or response is left out and counted.

    parts: where each prompt is kept as soon as it is answered.

    Raises:
        ValueError: they take more than `memory_gb`.
    """

    async def tasks() -> AsyncIterator[Task]:
        for prompt in prompts:
            yield Task(prompt, "train_value", _Draw(settings))

    def keep(task: Task, progress: Progress, rollouts: Rollouts, scores: Scores) -> None:
        prompt, examples = task.prompt, _examples(rollouts, scores)
        found.add(prompt.ordinal, is_held_out(prompt.prompt_id, settings), examples)
        if parts is not None:
            parts.add(prompt.ordinal, prompt.prompt_id, examples, progress.trace)

    driver = Driver(models.policy, models.reward, {}, settings.seed, models.in_flight)
    driver.watch = keep
    async for outcome in driver.run(tasks()):
        if outcome.progress is None:
            found.num_skipped += 1
            continue
        found.traces.append(outcome.progress.trace)
        if found.num_bytes > settings.memory_gb * 1e9:
            raise ValueError(
                f"the pre-logits of {len(found.traces)} prompts take more than memory_gb={settings.memory_gb:g}; "
                f"lower limit or samples, or raise memory_gb"
            )


def _examples(rollouts: Rollouts, scores: Scores) -> list[Example]:
    """The responses that have a reward, with their pre-logits."""
    import numpy as np

    from aisp_ray.controls.value import Example

    return [
        Example(np.asarray(item.prelogits, dtype=np.float16), float(reward))
        for item, reward in zip(rollouts.items, scores.rewards, strict=True)
        if math.isfinite(reward) and item.num_generated_tokens > 0
    ]


def is_held_out(prompt_id: str, settings: ValueTraining) -> bool:
    """By name, so that more prompts never move one from one side to the other."""
    return derive_seed(settings.seed, prompt_id, "held out") < settings.held_out * 2**64


# ---------------------------------------------------------------- the network and its facts


def fit_and_write(found: Collected, settings: ValueTraining) -> dict[str, Any]:
    """Fit, write the file and its facts beside it; returns the facts.

    Raises:
        ValueError: too few usable responses.
    """
    from aisp_ray.controls.value import Fit, fit

    train, held_out = found.train, found.held_out
    if not train or not held_out:
        raise ValueError(
            f"{len(train)} responses to train on and {len(held_out)} held out: too few; "
            f"give more prompts or change held_out"
        )
    width = train[0].prelogits.shape[1]
    how = Fit(
        hidden=settings.hidden or width,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        terminal=settings.terminal,
        seed=derive_seed(settings.seed, "value function"),
    )
    print(f"{len(train)} responses to train on, {len(held_out)} held out; {found.num_bytes / 1e6:.1f} MB")
    started = time.perf_counter()
    function, curve = fit(train, held_out, how)
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
    cost = {"num_prompts": len(found.traces)}
    cost |= {name: int(found.total(name)) for name in ("num_samples", "num_generated_tokens", "num_reward_calls")}
    seconds_of = {"policy": found.total("policy_seconds"), "reward": found.total("reward_seconds"), "fit": seconds}
    cost["num_backward_passes"] = settings.epochs * math.ceil(len(found.train) / settings.batch_size)
    return {
        "settings": dataclasses.asdict(settings),
        "num_skipped_prompts": found.num_skipped,
        "cost": cost,
        "seconds": {name: round(value, 3) for name, value in seconds_of.items()},
        "curve": null(curve),
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
