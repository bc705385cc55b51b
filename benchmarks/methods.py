"""All methods on the demo world, at equal samples and at equal tokens: two tables, and one command that makes them.

    python benchmarks/methods.py outputs/methods                       # 100 prompts, 3 seeds: hours on one core
    python benchmarks/methods.py outputs/try limit=4 seeds=1 samples=64    # to see it work

Runs are those of jobs/eval.py, so the same command resumes where it stopped, and
`jobs/report.py out=<folder>/seed0/main` reports them. Other keys (policy=, reward=, data=,
run.address=local, ...) go to every run.

Samples are responses that are begun: n kappa, or n of a method over blocks. Tokens are the generated ones, measured:
the budget is the mean that best-of-n spent on its samples. A search is read off at a quarter, a half and all of a
budget from its particles, except where a schedule depends on its end (aisp_commit) or where n decides (blocks): these
are run for each budget, and the nearest run that does not exceed it by more than 5 % is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aisp_ray.commands import eval as evaluation
from aisp_ray.errors import OK, SOME_ERRORS
from aisp_ray.metrics.base import estimate

BASELINE, PARTS = "best_of_n_tuned", (0.25, 0.5, 1.0)
ANYTIME = ("best_of_n", BASELINE, "noise_only", "aisp", "aisp_sampled", "aisp_plus", "misvo", "re_control")
SAVING = ("aisp_population", "qalign")  # anytime too; half the tokens a sample, so they also run twice as long
COMMITTED = ("aisp_commit", "aisp_commit_only", "aisp_commit_agreed", "aisp_commit_rising")  # two thirds of the tokens
SCHEDULED = (*COMMITTED, "carbon")  # kappa is part of the schedule
BLOCKS = ("particle_filter", "blockwise", "blockwise_beam", "cards", "speculative_rejection")


def calls(samples: int = 256) -> dict[str, dict[str, str]]:
    """Keys of each run of jobs/eval.py, by name: the methods, and their n and kappa."""
    n = 16
    found = {"main": {**{f"method.{m}.kappa": f"{samples // n}" for m in (*ANYTIME, *SAVING, *SCHEDULED)}}}
    found["long"] = {f"method.{m}.kappa": f"{2 * samples // n}" for m in SAVING}
    for share in PARTS:
        kappas = {f"method.{m}.kappa": f"{round(share * samples / n)}" for m in SCHEDULED if share != 1}
        found[f"part{share}"] = kappas | {f"method.{m}.n": f"{round(share * samples)}" for m in BLOCKS}
        # what brings these to about as many tokens
        kappas = {f"method.{m}.kappa": f"{round(1.5 * share * samples / n)}" for m in COMMITTED}
        found[f"tokens{share}"] = kappas | {"method.speculative_rejection.n": f"{round(2 * share * samples)}"}
    return found


def run_all(folder: Path, seeds: int, samples: int, words: Sequence[str]) -> None:
    """Every run of every seed; one that is there costs nothing. Exits where one fails."""
    for seed in range(seeds):
        for name, keys in calls(samples).items():
            methods = list(dict.fromkeys(key.split(".")[1] for key in keys))
            sizes = [f"method.{m}.n=16" for m in methods if f"method.{m}.kappa" in keys]
            given = [
                f"method=[{','.join(methods)}]",
                *(f"{key}={value}" for key, value in keys.items()),
                *sizes,
                *words,
            ]
            fixed = [f"seed={seed}", f"out={folder}/seed{seed}/{name}", f"baseline={methods[0]}"]
            quiet = ["allow_unequal_budgets=true", "run.particles=true", "report=false"]
            code = evaluation.main([*given, *fixed, *quiet])
            if code not in (OK, SOME_ERRORS):
                sys.exit(code)


@dataclass(frozen=True)
class Curve:
    """One method in one run: per prompt what it had spent after each sample, and the best reward then."""

    tokens: Mapping[int, np.ndarray]  # by ordinal, cumulative, [samples]
    best: Mapping[int, np.ndarray]  # [samples]
    rows: Mapping[int, Mapping[str, Any]]
    anytime: bool  # whether it may be read off before its end

    @property
    def mean_tokens(self) -> float:
        return float(np.mean([spent[-1] for spent in self.tokens.values()]))

    def at(self, unit: str, budget: float) -> dict[int, float]:
        """Best reward per prompt within a budget; only the end of one that is no anytime search."""
        found = {}
        for ordinal, best in self.best.items():
            spent = self.tokens[ordinal] if unit == "tokens" else np.arange(1, len(best) + 1)
            last = int(np.searchsorted(spent, budget, side="right")) - 1 if self.anytime else len(best) - 1
            found[ordinal] = float(best[max(0, last)])
        return found


def read(out: Path, method: str, anytime: bool) -> Curve:
    chosen = [("method", "=", method)]
    rows = {
        row["ordinal"]: row for row in pq.read_table(out / "rows", filters=chosen).to_pylist() if row["status"] == "ok"
    }
    table = pq.read_table(out / "particles", filters=chosen).sort_by(
        [(k, "ascending") for k in ("iteration", "particle")]
    )
    spent: dict[int, list[int]] = {ordinal: [] for ordinal in rows}
    rewards: dict[int, list[float]] = {ordinal: [] for ordinal in rows}
    for row in table.select(["ordinal", "num_generated_tokens", "reward"]).to_pylist():
        if row["ordinal"] in rows:
            spent[row["ordinal"]].append(row["num_generated_tokens"])
            rewards[row["ordinal"]].append(-np.inf if row["reward"] is None else row["reward"])
    best = {o: np.maximum.accumulate(r) if anytime else np.full(len(r), rows[o]["reward"]) for o, r in rewards.items()}
    return Curve({o: np.cumsum(s) for o, s in spent.items()}, best, rows, anytime)


def curves_of(folder: Path, samples: int) -> dict[str, list[Curve]]:
    """Every run of every method under one seed."""
    found: dict[str, list[Curve]] = {}
    for name, keys in calls(samples).items():
        for method in dict.fromkeys(key.split(".")[1] for key in keys):
            found.setdefault(method, []).append(read(folder / name, method, method in (*ANYTIME, *SAVING)))
    return found


def chosen_for(curves: Sequence[Curve], method: str, unit: str, budget: float) -> Curve:
    """The run that is read off for a budget: the nearest one that does not exceed it by more than 5 %."""

    def cost(curve: Curve) -> float:
        if unit == "tokens":
            return curve.mean_tokens
        row = next(iter(curve.rows.values()))
        return float(begun(row, method))

    if curves[0].anytime:
        return next((curve for curve in curves if cost(curve) >= budget), max(curves, key=cost))
    return max((c for c in curves if cost(c) <= 1.05 * budget), key=cost, default=min(curves, key=cost))


def begun(row: Mapping[str, Any], method: str) -> int:
    """Responses that were begun: those of the first block, or all."""
    return row["num_samples_seen"][0] if method in BLOCKS else row["num_samples"]


def table(seeds: Sequence[Mapping[str, list[Curve]]], unit: str, samples: int) -> Iterator[str]:
    """One table as Markdown; differences are paired over prompts, of means over seeds."""
    full = [float(samples) if unit == "samples" else one["best_of_n"][0].mean_tokens for one in seeds]
    other = "tokens" if unit == "samples" else "samples"
    yield f"| equal {unit} | 1/4 | 1/2 | 1 | against {BASELINE} | {other} | judges |"
    yield "|---|---|---|---|---|---|---|"
    values: dict[str, list[dict[int, float]]] = {}
    for method in seeds[0]:
        per_part = []
        for part in PARTS:
            pairs = zip(seeds, full, strict=True)
            found = [chosen_for(one[method], method, unit, part * b).at(unit, part * b) for one, b in pairs]
            per_part.append(mean_over(found))
        values[method] = per_part
    against = values[BASELINE][-1]
    for method, parts in values.items():
        last = [chosen_for(one[method], method, unit, b) for one, b in zip(seeds, full, strict=True)]
        rows = [row for curve in last for row in curve.rows.values()]
        spent = [row["num_generated_tokens"] if other == "tokens" else begun(row, method) for row in rows]
        gain = estimate(np.array([parts[-1][o] - against[o] for o in against if o in parts[-1]]))
        cells = " | ".join(f"{np.mean(list(part.values())):.3f}" for part in parts)
        mean = f"{gain.mean:+.3f} ± {gain.half_width:.3f}"
        yield f"| `{method}` | {cells} | {mean} | {np.mean(spent):,.0f} | {judged(rows)} |"


def judged(rows: Sequence[Mapping[str, Any]]) -> str:
    """The mean of every held-out judge, of the responses that the runs ended with."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in zip(row["judge_names"], row["judge_rewards"], strict=True):
            values.setdefault(name, []).extend([] if value is None else [value])
    return ", ".join(f"{name} {np.mean(found):.2f}" for name, found in values.items() if found)


def mean_over(seeds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Of the prompts that every seed has."""
    shared = set.intersection(*(set(one) for one in seeds))
    return {ordinal: float(np.mean([one[ordinal] for one in seeds])) for ordinal in sorted(shared)}


def main(words: Sequence[str]) -> None:
    if not words or words[0].startswith("-"):
        sys.exit(__doc__)
    folder, given = Path(words[0]), dict(word.split("=", 1) for word in words[1:])
    seeds, samples = int(given.pop("seeds", "3")), int(given.pop("samples", "256"))
    run_all(folder, seeds, samples, [f"{key}={value}" for key, value in {"limit": "100", **given}.items()])
    found = [curves_of(folder / f"seed{seed}", samples) for seed in range(seeds)]
    for unit in ("samples", "tokens"):
        print("", *table(found, unit, samples), sep="\n")
    print("\nJudges are those of the response that each run ended with, which may have gone beyond the budget.")


if __name__ == "__main__":
    main(sys.argv[1:])
