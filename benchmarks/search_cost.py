"""What a search costs against the full grid: prompts until its best setting is within 1 % of the grid's best.

First measure the grid with the models, once:
    python jobs/tune.py tune=sigma_lambda search=grid limit=32 out=outputs/grid
Then replay searches on it, from random starts, with values looked up instead of measured:
    python benchmarks/search_cost.py tune=sigma_lambda search=grid limit=32 out=outputs/grid
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aisp_ray.commands.tune import make_plan, read_command
from aisp_ray.plan import describe
from aisp_ray.rng import generator
from aisp_ray.tune.plan import TunePlan
from aisp_ray.tune.propose import make_proposer
from aisp_ray.tune.search import Rules, run_search
from aisp_ray.tune.space import Space
from aisp_ray.tune.store import setting_hash
from aisp_ray.tune.trial import Trial

SEEDS = 60
TOLERANCE = 0.01  # of the best mean reward


class Grid:
    """Rewards of every setting of a grid on every prompt."""

    def __init__(self, plan: TunePlan):
        found: dict[str, dict[int, float]] = {}
        for row in pq.read_table(f"{plan.out}/evaluations").to_pylist():
            if row["dataset"] == plan.data.dataset:
                reward = math.nan if row["reward"] is None else row["reward"]
                found.setdefault(row["setting"], {})[row["ordinal"]] = reward
        self.num_prompts = plan.rules.num_prompts
        self.values = {}
        for settings in plan.workbench.space.grid():
            rewards = found[setting_hash(describe(plan.workbench.make(settings)))]
            self.values[_key(settings)] = np.array([rewards[i] for i in range(self.num_prompts)])
        self.means = {key: float(np.nanmean(values)) for key, values in self.values.items()}
        self.best = max(self.means.values())

    def make(self, settings: Mapping[str, Any]) -> Any:
        """The "method" of a replayed trial: its settings."""
        return settings


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def replay(grid: Grid, space: Space, search: str, rules: Rules, seed: int) -> tuple[int, int]:
    """(evaluations until within the tolerance, evaluations in all) of one search; the first is -1 if never."""
    asked = 0
    reached = -1
    settings = space.grid()
    start = settings[int(generator("start", seed).integers(len(settings)))]

    async def measure(methods: Mapping[int, Any], first: int, last: int) -> Mapping[int, Sequence[float]]:
        nonlocal asked
        asked += len(methods) * (last - first)
        return {number: grid.values[_key(each)][first:last].tolist() for number, each in methods.items()}

    def seen(trials: Sequence[Trial]) -> None:
        nonlocal reached
        best = max(trial.mean() for trial in trials if trial.state == "complete")
        if reached < 0 and best >= grid.best - TOLERANCE * abs(grid.best):
            reached = asked

    preset = Trial(0, start, start, state="complete", values=grid.values[_key(start)].tolist())
    asked += grid.num_prompts
    seen([preset])
    proposer = make_proposer(search, space, len(settings) - 1, seed, preset)
    asyncio.run(run_search(preset, proposer, grid, measure, rules, seen))
    return reached, asked


def main(words: Sequence[str]) -> None:
    if not words or words[0].startswith("-"):
        sys.exit(__doc__)
    plan = make_plan(read_command(words)[1])
    space, grid = plan.workbench.space, Grid(plan)
    full = len(grid.values) * grid.num_prompts
    near = sum(mean >= grid.best - TOLERANCE * abs(grid.best) for mean in grid.means.values())
    print(f"{plan.name}: {len(grid.values)} settings x {grid.num_prompts} prompts = {full} evaluations")
    print(f"means {min(grid.means.values()):.3f} to {grid.best:.3f}; {near} settings within 1 % of the best\n")
    print("| search | stop | batch | within 1 %: median | 90 % of seeds | share of the grid | seeds that got there |")
    print("|---|---|---|---|---|---|---|")
    for search, stop, batch in itertools.product(("random", "tpe"), ("none", "halving", "race"), (4, 8)):
        rules = Rules(grid.num_prompts, stop, 4, batch)
        runs = [replay(grid, space, search, rules, seed) for seed in range(SEEDS)]
        # a search that dropped the best ones never gets there: as dear as it was plus the whole grid after it
        costs = np.array([reached if reached >= 0 else asked + full for reached, asked in runs])
        there = sum(reached >= 0 for reached, _ in runs)
        middle, most = np.median(costs), np.quantile(costs, 0.9)
        print(f"| {search} | {stop} | {batch} | {middle:.0f} | {most:.0f} | {middle / full:.0%} | {there} of {SEEDS} |")


if __name__ == "__main__":
    main(sys.argv[1:])
