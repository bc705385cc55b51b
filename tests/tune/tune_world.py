"""A world without models: a response's reward is a pure function of its name and of the temperature it was drawn at."""

import asyncio
import contextlib
import math

from aisp_ray import config
from aisp_ray.cluster.models import Models
from aisp_ray.commands.tune import make_plan, read_command
from aisp_ray.files import Output
from aisp_ray.pipeline.progress import Screen
from aisp_ray.rng import generator
from aisp_ray.tune.run import Study
from aisp_ray.types import Prompt, Rollout, Rollouts, Scores

PEAK = 0.6  # the temperature with the highest mean reward


class FakePolicy:
    """Counts the searches it served; raises after `most` rollouts (a machine room that burns down)."""

    def __init__(self, most=math.inf):
        self.num_rollouts, self.most = 0, most

    async def rollout(self, prompt, proposal, seed):
        await asyncio.sleep(0)
        self.num_rollouts += 1
        if self.num_rollouts > self.most:
            raise asyncio.CancelledError
        level = generator(prompt.prompt_id, "level").normal()
        height = level - math.log(proposal.sampling.temperature / PEAK) ** 2
        names = [(seed, prompt.prompt_id, proposal.iteration, i) for i in range(proposal.num_samples)]
        rewards = [height + 0.1 * generator(*name).normal() for name in names]
        items = tuple(Rollout(i, repr(r), (1, 2), "stop", 2) for i, r in enumerate(rewards))
        return Rollouts(proposal.iteration, items, 3, seconds=0.5)


class FakeReward:
    def __init__(self, bias=0.0):
        self.bias = bias

    async def score(self, prompt, responses):
        await asyncio.sleep(0)
        rewards = [math.nan if "hopeless" in prompt.text else float(text) + self.bias for text in responses]
        return Scores(tuple(rewards), tuple("no" if math.isnan(r) else None for r in rewards), seconds=0.25)


def prompts(count, dataset="tuning", text="question"):
    return [Prompt(f"{dataset}/test/{i:08d}", i, dataset, f"{text} {dataset} {i}") for i in range(count)]


def make(out, *words):
    """The plan of a command: best-of-n's temperature in the world above."""
    space = "tune.keys={temperature: {low: 0.1, high: 3.0, log: true}}"
    given = {word.split("=", 1)[0] for word in words}
    usual = [space, "tune=any", "tune.method=best_of_n", "tune.samples=4", "tune.set={n: 2, top_p: 1.0}", "limit=16"]
    kept = [word for word in usual if word.split("=", 1)[0] not in given]
    return make_plan(read_command([*kept, *words, f"out={out}"])[1])


def run(plan, policy=None, tuning=None, heldout=None, in_flight=5):
    """The exit code and the policy of a study without Ray."""
    policy = policy or FakePolicy()

    @contextlib.asynccontextmanager
    async def opened(plan, say):
        yield Models(policy, FakeReward(), {name: FakeReward(10.0) for name in plan.judges}, in_flight)

    study = Study(plan, Output(plan.out), Screen())
    tuning = prompts(plan.rules.num_prompts) if tuning is None else tuning
    heldout = prompts(8, "heldout") if heldout is None else heldout
    return study.run(lambda: (tuning, heldout), opened), policy


def read_preset(path):
    import yaml

    return config.build(yaml.safe_load(path.read_text()), "method.best")
