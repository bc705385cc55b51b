"""Does AISP's mean help where its particles still agree on the text? Two measurements for docs/notes/aisp_explained.md.

    python benchmarks/explained.py outputs/explained                      # the demo, 30 prompts, 16 x 16 samples
    python benchmarks/explained.py outputs/explained policy=smollm2 reward=smollm2 data=everyday limit=8 n=8 kappa=8

The mean is tied to positions, so what it learnt at t helps a particle only if that particle reads there what the others
read. (a) How many tokens have the particles of an iteration in common, and the best ones of successive iterations?
(b) How much reward does the last mean bring when it acts on the first h positions only, under the same noise?

Models run in this process. One JSON file per prompt: the same command resumes where it stopped. `method=` is any AISP
preset with its own noise; n and kappa are set here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aisp_ray.cluster.local import load_here
from aisp_ray.cluster.models import Models
from aisp_ray.commands.eval import make_plan, read_command
from aisp_ray.data.stream import rows_locally
from aisp_ray.driver import search
from aisp_ray.ledger import Progress, Task
from aisp_ray.metrics.base import estimate
from aisp_ray.plan import Plan
from aisp_ray.types import Prompt, Rollouts, Scores

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the longest response: where the mean is cut off

Ids = tuple[int, ...]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((t for t, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def prefixes(iterations: Sequence[tuple[Sequence[Ids], Sequence[float]]]) -> dict[str, list[float]]:
    """Common prefixes by iteration, in tokens. iterations: token ids and rewards of the particles.

    pairs: mean over all pairs of particles. leader: mean over particles, with the best response before this iteration.
    winners: of this iteration's best particle with the best of the iteration before. length: mean length.
    """
    found: dict[str, list[float]] = {"pairs": [], "leader": [], "winners": [], "length": []}
    leader: Ids = ()
    before: Ids = ()
    highest = -np.inf
    for ids, rewards in iterations:
        winner = int(np.nanargmax(rewards))
        found["pairs"].append(float(np.mean([common_prefix(a, b) for a, b in itertools.combinations(ids, 2)])))
        found["leader"].append(float(np.mean([common_prefix(one, leader) for one in ids])) if leader else np.nan)
        found["winners"].append(float(common_prefix(ids[winner], before)) if before else np.nan)
        found["length"].append(float(np.mean([len(one) for one in ids])))
        before = ids[winner]
        if rewards[winner] > highest:
            leader, highest = ids[winner], rewards[winner]
    return found


async def one_prompt(prompt: Prompt, plan: Plan, models: Models) -> dict[str, Any]:
    """Search, then draw under the last mean cut off at each horizon and under the same noise without a mean."""
    ((name, method),) = plan.methods.items()
    seen: list[tuple[Sequence[Ids], Sequence[float]]] = []

    def watch(task: Task, progress: Progress, rollouts: Rollouts, scores: Scores) -> None:
        seen.append(([item.token_ids for item in rollouts.items], scores.rewards))

    done = await search(Task(prompt, name, method), models.policy, models.reward, plan.seed, watch=watch)
    last = method.ask(dataclasses.replace(done.state, iteration=method.kappa - 1, done=False))
    last = dataclasses.replace(last, iteration=method.kappa, prefixes=None)  # names noise that no iteration has seen
    longest = plan.policy.max_new_tokens or 128
    gains = []
    for share in SHARES:
        with_mean = dataclasses.replace(last.control, horizon=max(1, round(share * longest)))
        pair = [
            await mean_reward(prompt, dataclasses.replace(last, control=c), plan.seed, models)
            for c in (with_mean, dataclasses.replace(with_mean, mean=None))
        ]
        gains.append(pair)
    return {"prefixes": prefixes(seen), "reward_mean": list(done.trace.reward_mean), "gains": gains}


async def mean_reward(prompt: Prompt, proposal: Any, seed: int, models: Models) -> float:
    rollouts = await models.policy.rollout(prompt, proposal, seed)
    scores = await models.reward.score(prompt, tuple(item.text for item in rollouts.items))
    return float(np.nanmean(scores.rewards))


async def collect(plan: Plan, folder: Path) -> None:
    """A file for every prompt that has none."""
    async with load_here(plan, 1) as models:
        for prompt in rows_locally(plan.data, plan.limit):
            target = folder / f"{prompt.ordinal:08d}.json"
            if prompt.error is None and not target.exists():
                found = await one_prompt(prompt, plan, models)
                temporary = target.with_suffix(".tmp")
                temporary.write_text(json.dumps(found), encoding="utf-8")
                os.replace(temporary, target)
                print(
                    f"{target.name}: reward {found['reward_mean'][0]:.2f} -> {found['reward_mean'][-1]:.2f}", flush=True
                )


# ---------------------------------------------------------------- what is shown


def tables(found: Sequence[dict[str, Any]], longest: int) -> Iterator[str]:
    """Both tables as Markdown, with 95 % intervals over prompts."""
    traces = {name: np.array([one["prefixes"][name] for one in found]) for name in found[0]["prefixes"]}  # [prompts, k]
    kappa = traces["pairs"].shape[1]
    rewards = np.array([one["reward_mean"] for one in found])
    shown = sorted({0, 1, kappa // 4, kappa // 2, 3 * kappa // 4, kappa - 1})
    yield "| iteration | " + " | ".join(str(k + 1) for k in shown) + " |"
    yield "|---|" + "---|" * len(shown)
    named = {"mean reward": rewards, "tokens a response": traces["length"], "common to two particles": traces["pairs"]}
    named |= {"common to a particle and the best before": traces["leader"]}
    named |= {"common to this winner and the last": traces["winners"]}
    for name, values in named.items():
        cells = [" " if np.isnan(values[:, k]).all() else f"{np.nanmean(values[:, k]):.2f}" for k in shown]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "| mean acts on the first | reward with it | same noise without | gain |"
    yield "|---|---|---|---|"
    gains = np.array([one["gains"] for one in found])  # [prompts, shares, with and without]
    for i, share in enumerate(SHARES):
        gain = estimate(gains[:, i, 0] - gains[:, i, 1])
        means = gains[:, i].mean(axis=0)
        half = (gain.high - gain.low) / 2
        yield f"| {max(1, round(share * longest))} | {means[0]:.3f} | {means[1]:.3f} | {gain.mean:+.3f} ± {half:.3f} |"


def main(words: Sequence[str]) -> None:
    if not words or words[0].startswith("-"):
        sys.exit(__doc__)
    folder, given = Path(words[0]), dict(word.split("=", 1) for word in words[1:])
    method, n, kappa = given.pop("method", "aisp_sampled"), given.pop("n", "16"), given.pop("kappa", "16")
    given = {"limit": "30", **given, f"method.{method}.n": n, f"method.{method}.kappa": kappa}
    chosen = [
        f"method={method}",
        f"baseline={method}",
        "judges=null",
        *(f"{key}={value}" for key, value in given.items()),
    ]
    plan = make_plan(read_command(chosen)[1])
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(collect(plan, folder))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    print(f"\n{len(found)} prompts, {method}, n={n}, kappa={kappa}: {' '.join(chosen)}\n")
    print("\n".join(tables(found, plan.policy.max_new_tokens or 128)))


if __name__ == "__main__":
    main(sys.argv[1:])
