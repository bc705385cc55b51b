"""What sharing a budget out over prompts brings, and what stopping by Pandora's rule saves: read from finished draws.

    python jobs/eval.py method=[best_of_n] budget=256 run.particles=true out=outputs/draws
    python benchmarks/budgets.py outputs/draws best_of_n 16

The draws of a best-of-n have no order, so they are shuffled again and again, and every rule is followed on each order
with iterations of n responses. Only for methods whose iterations all draw from one distribution.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from convergence import Searches

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.methods.total_budget import allocate, outlook
from aisp_ray.metrics.base import estimate
from aisp_ray.rng import generator

ORDERS = 40
ACCEPT_AT = (0.3, 0.35, 0.4, 0.45)
ACCEPT_COST = (0.004, 0.002, 0.001, 0.0005, 0.0002)


def shared(rewards: np.ndarray, n: int, samples: int) -> np.ndarray:
    """Draws of each prompt under `budget=total:samples`. rewards: [prompts, draws]."""
    prompts, draws = rewards.shape
    method = BestOfN(n=n, kappa=draws // n)
    told = dict.fromkeys(range(prompts), 1)
    rounds = rewards[:, : method.kappa * n].reshape(prompts, method.kappa, n)
    traces = [(r.mean(1).tolist(), r.std(1, ddof=1).tolist(), r.max(1).tolist()) for r in rounds]
    while True:
        outlooks = {i: outlook(method, traces[i], told[i]) for i in told}
        plan = allocate(outlooks, samples - n * sum(told.values()))
        if not plan:
            return n * np.array([told[i] for i in range(prompts)])
        for i in plan:
            told[i] += 1


def stopped(rewards: np.ndarray, n: int, **rule: Any) -> np.ndarray:
    """Draws of each prompt under `accept_at` or `accept_cost`."""
    method = BestOfN(n=n, kappa=rewards.shape[1] // n, **rule)
    found = []
    for row in rewards:
        ends = range(n, method.num_samples + 1, n)
        found.append(next((m for m in ends if method._accepts(row[:m].tolist())[0]), method.num_samples))
    return np.array(found)


def best(rewards: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return np.array([row[:m].max() for row, m in zip(rewards, draws, strict=True)])


def show(name: str, spent: list[np.ndarray], gained: list[np.ndarray], fixed: list[np.ndarray]) -> None:
    """A line: draws, reward, and the paired difference to as many draws for each; means over orders, then prompts."""
    difference = estimate(np.mean(np.array(gained) - np.array(fixed), axis=0))
    draws = np.array(spent)
    print(
        f"| {name} | {draws.mean():.1f} | {np.percentile(draws, 10):.0f} to {np.percentile(draws, 90):.0f} | "
        f"{np.mean(gained):.3f} | {np.mean(fixed):.3f} | {difference.mean:+.4f} ± {difference.half_width:.4f} |"
    )


def main(out: str, method: str, size: str) -> None:
    rewards, n = Searches(out, method).rewards, int(size)
    rewards = np.nan_to_num(rewards.reshape(len(rewards), -1), nan=-np.inf)
    prompts, draws = rewards.shape
    orders = [generator("orders", k).permuted(rewards, axis=1) for k in range(ORDERS)]
    print(f"{prompts} prompts, {draws} draws each, iterations of {n}, {ORDERS} orders\n")
    print("| rule | draws | 10 to 90 % of them | reward | as many for each | difference |\n|---|---|---|---|---|---|")
    for each in (2 * n, 4 * n, 8 * n):
        spent = [shared(one, n, each * prompts) for one in orders]
        gained = [best(one, m) for one, m in zip(orders, spent, strict=True)]
        fixed = [best(one, np.full(prompts, each)) for one in orders]
        show(f"total, {each} a prompt", spent, gained, fixed)
    for key, values in (("accept_at", ACCEPT_AT), ("accept_cost", ACCEPT_COST)):
        for value in values:
            spent = [stopped(one, n, **{key: value}) for one in orders]
            gained = [best(one, m) for one, m in zip(orders, spent, strict=True)]
            mean = round(float(np.mean(spent)))
            fixed = [best(one, np.full(prompts, mean)) for one in orders]
            show(f"{key} {value:g}", spent, gained, fixed)
    print(f"\nall {draws} draws: {rewards.max(1).mean():.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
