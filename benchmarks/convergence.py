"""How AISP converges, and what stopping early saves and costs: read from the particles of a finished evaluation.

    python jobs/eval.py method=[aisp,best_of_n_tuned] run.particles=true out=outputs/convergence
    python benchmarks/convergence.py outputs/convergence aisp

A search up to iteration k does not depend on where it stops, so every rule is read off one run with the full budget.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aisp_ray.methods._stopping import expected_gain
from aisp_ray.metrics.base import estimate

BARS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3)  # reward units
PATIENCE = (2, 4, 8)  # iterations without a better response
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75)  # of prompts whose final reward lies below the rewards tried as `stop_at`


class Searches:
    """Rewards of every particle, [prompts, iterations, n], and the traces of the rows."""

    def __init__(self, out: str, method: str):
        table = pq.read_table(f"{out}/particles", filters=[("method", "=", method)])
        rows = pq.read_table(f"{out}/rows", filters=[("method", "=", method), ("status", "=", "ok")]).to_pylist()
        places = {row["ordinal"]: i for i, row in enumerate(rows)}
        shape = len(rows), max(table["iteration"].to_pylist()) + 1, max(table["particle"].to_pylist()) + 1
        self.rewards = np.full(shape, np.nan)
        for row in table.select(["ordinal", "iteration", "particle", "reward"]).to_pylist():
            if row["ordinal"] in places and row["reward"] is not None:
                self.rewards[places[row["ordinal"]], row["iteration"], row["particle"]] = row["reward"]
        self.best = np.maximum.accumulate(np.nanmax(self.rewards, axis=2), axis=1)  # [prompts, iterations]
        self.num_prompts, self.kappa, self.n = shape
        self.traces = {
            name: np.array([[np.nan if x is None else x for x in row[name]] for row in rows], dtype=np.float64)
            for name in ("ess", "control_norm")
        }
        self.expected = np.array(
            [
                [
                    expected_gain(self.rewards[p, k], self.best[p, k], (self.kappa - 1 - k) * self.n)
                    for k in range(self.kappa)
                ]
                for p in range(self.num_prompts)
            ]
        )

    def loss(self, stops: np.ndarray) -> np.ndarray:
        """Reward given up per prompt by stopping after iteration `stops` (from 0)."""
        return self.best[:, -1] - self.best[np.arange(self.num_prompts), stops]

    def first(self, stop: np.ndarray) -> np.ndarray:
        """Per prompt the first iteration where `stop` [prompts, iterations] is true, else the last one."""
        return np.where(stop.any(1), stop.argmax(1), self.kappa - 1)


def by_iteration(runs: Searches) -> None:
    print("| iteration | mean reward | best so far | ESS | control norm | step | gain still to come | expected then |")
    print("|---|---|---|---|---|---|---|---|")
    norm = runs.traces["control_norm"].mean(0)
    marks = [k for k in (0, 1, 2, 3, 5, 7, 9, 11, 13, 15, 23, 31) if k < runs.kappa]
    for k in marks:
        step = norm[k] - norm[k - 1] if k else np.nan
        print(
            f"| {k + 1} | {np.nanmean(runs.rewards[:, k]):.3f} | {runs.best[:, k].mean():.3f} | "
            f"{np.nanmean(runs.traces['ess'][:, k]):.1f} | {norm[k]:.2f} | {step:+.2f} | "
            f"{runs.loss(np.full(runs.num_prompts, k)).mean():.3f} | {np.nanmean(runs.expected[:, k]):.3f} |"
        )


def patience(runs: Searches, rounds: int) -> np.ndarray:
    """Stop after so many iterations without a better response."""
    quiet = np.zeros((runs.num_prompts, runs.kappa), dtype=bool)
    for k in range(rounds, runs.kappa):
        quiet[:, k] = runs.best[:, k] <= runs.best[:, k - rounds]
    return runs.first(quiet)


def rules(runs: Searches) -> None:
    """Every rule against the shorter run that spends as much on every prompt."""
    print("\n| rule | samples used | reward given up | a fixed budget of as many gives up |")
    print("|---|---|---|---|")
    whole = [runs.loss(np.full(runs.num_prompts, k)).mean() for k in range(runs.kappa)]
    stops = {f"early_stop={bar}": runs.first(runs.expected < bar) for bar in BARS}
    for target in dict.fromkeys(np.round(np.quantile(runs.best[:, -1], SHARES), 1 if runs.best.std() > 1 else 2)):
        stops[f"stop_at={target:g}"] = runs.first(runs.best >= target)
    stops |= {f"no better response in {rounds} iterations": patience(runs, rounds) for rounds in PATIENCE}
    for name, at in stops.items():
        used = float((at + 1).mean())
        lost = estimate(runs.loss(at))
        fixed = float(np.interp(used - 1, range(runs.kappa), whole))
        print(f"| {name} | {used / runs.kappa:.0%} | {lost.mean:.3f} [{lost.low:.3f}, {lost.high:.3f}] | {fixed:.3f} |")


def main(out: str, method: str) -> None:
    runs = Searches(out, method)
    print(f"{method}: {runs.num_prompts} prompts, {runs.kappa} iterations of {runs.n}\n")
    by_iteration(runs)
    rules(runs)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
