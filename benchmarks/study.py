"""The study on real models: one command a cell, and its table.

    python benchmarks/study.py hh OUT data.path=hh_rlhf.jsonl        # the main cell: seven methods
    python benchmarks/study.py shp OUT data.path=shp.jsonl           # other prompts, four methods
    python benchmarks/study.py reward_b OUT data.path=hh_rlhf.jsonl  # reward and judge exchanged
    python benchmarks/study.py gemma OUT policy.model=gemma.gguf data.path=hh_rlhf.jsonl
    python benchmarks/study.py table OUT [OUT of another seed ...]   # only the table of finished runs

After `make real`, which makes the checkpoints. Runs are those of jobs/eval.py, so the same command resumes where it
stopped. Other keys (seed=1, limit=, budget=, run.address=local, ...) go to the run. Temperature of best_of_n_tuned and
sigma of aisp were tuned on other prompts of HH-RLHF with SmolLM2 (docs/real_models.md) and stay as they are elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aisp_ray.commands import eval as evaluation
from aisp_ray.errors import OK, SOME_ERRORS
from aisp_ray.metrics.base import estimate

N, PARTS = 8, (0.25, 0.5, 1.0)
FOUR = ("best_of_n", "best_of_n_tuned", "aisp", "aisp_population")
SEVEN = (*FOUR[:2], "noise_only", *FOUR[2:], "aisp_commit", "aisp_commit_only")
TUNED = {"best_of_n_tuned": "temperature=0.5", "aisp": "sigma=0.2", "noise_only": "sigma=0.2"}
SMOLLM2 = ("policy=smollm2", "reward=smollm2")
CELLS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "hh": (SEVEN, (*SMOLLM2, "data=hh_rlhf")),
    "shp": (FOUR, (*SMOLLM2, "data=shp")),
    "reward_b": (FOUR, ("policy=smollm2", "reward=smollm2_judge", "judges=[smollm2]", "data=hh_rlhf")),
    "gemma": (FOUR, ("policy=hf", "policy.max_new_tokens=48", "reward=smollm2", "data=hh_rlhf")),
}


def words_of(cell: str, out: str, given: Sequence[str]) -> list[str]:
    """The words of jobs/eval.py."""
    methods, models = CELLS[cell]
    sizes = [f"method.{m}.n={N}" for m in methods]
    tuned = [f"method.{m}.{TUNED[m]}" for m in methods if m in TUNED]
    fixed = [f"method=[{','.join(methods)}]", *sizes, *tuned, *models, "limit=24", "budget=64", f"out={out}"]
    keys = {word.partition("=")[0]: word for word in (*fixed, *given)}  # a given word takes the place of ours
    return list(keys.values())


def read(out: str) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Finished rows by method and ordinal."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in pq.read_table(f"{out}/rows", filters=[("status", "=", "ok")]).to_pylist():
        found.setdefault(row["method"], {})[row["ordinal"]] = row
    return {m: found[m] for m in SEVEN if m in found} | {m: rows for m, rows in found.items() if m not in SEVEN}


def per_prompt(seeds: Sequence[Mapping[int, Mapping[str, Any]]], value: Any) -> dict[int, float]:
    """A value of each prompt that all seeds have, the mean over seeds."""
    shared = set.intersection(*(set(rows) for rows in seeds))
    return {o: float(np.mean([value(rows[o]) for rows in seeds])) for o in sorted(shared)}


def best_after(part: float) -> Any:
    """The best reward after a part of a row's iterations."""
    return lambda row: row["reward_best"][max(1, round(part * len(row["reward_best"]))) - 1]


def judge(row: Mapping[str, Any]) -> float:
    values = row["judge_rewards"]
    return float(values[0]) if values and values[0] is not None else float("nan")


def against(values: Mapping[int, float], baseline: Mapping[int, float]) -> str:
    """The paired difference, ± half the 95 % bootstrap interval over prompts."""
    gains = np.array([values[o] - baseline[o] for o in baseline if o in values])
    gain = estimate(gains[np.isfinite(gains)])
    return f"{gain.mean:+.2f} ± {gain.half_width:.2f}"


def table(outs: Sequence[str]) -> Iterator[str]:
    """The cell's table as Markdown; outs: one finished run per seed."""
    runs = [read(out) for out in outs]
    methods = [m for m in runs[0] if all(m in run for run in runs)]
    rewards = {m: per_prompt([run[m] for run in runs], lambda row: row["reward"]) for m in methods}
    judges = {m: per_prompt([run[m] for run in runs], judge) for m in methods}
    yield f"{len(next(iter(rewards.values())))} prompts, {len(outs)} seed{'s' if len(outs) > 1 else ''}\n"
    yield (
        "| method | reward after 1/4, 1/2, all samples | vs best_of_n | vs best_of_n_tuned | judge | judge vs"
        " best_of_n_tuned | tokens | cut | mean reward, first to last iteration |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---|"
    for method in methods:
        rows = [row for run in runs for row in run[method].values()]
        curve = " / ".join(f"{np.mean([best_after(part)(row) for row in rows]):.2f}" for part in PARTS)
        versus = [
            "-" if method == b else against(v[method], v[b])
            for v, b in ((rewards, "best_of_n"), (rewards, "best_of_n_tuned"), (judges, "best_of_n_tuned"))
        ]
        tokens = np.mean([row["num_generated_tokens"] for row in rows])
        cut = np.mean([row["finish_reason"] == "length" for row in rows])
        first, last = (np.mean([row["reward_mean"][k] for row in rows]) for k in (0, -1))
        score = np.nanmean(list(judges[method].values()))
        yield (
            f"| {method} | {curve} | {versus[0]} | {versus[1]} | {score:.2f} | {versus[2]} | {tokens:,.0f} |"
            f" {cut:.0%} | {first:.2f} to {last:.2f} |"
        )


def main(words: Sequence[str]) -> None:
    if len(words) < 2 or words[0] not in ("table", *CELLS):
        sys.exit(__doc__)
    cell, out, *given = words
    if cell != "table":
        code = evaluation.main(words_of(cell, out, given))
        if code not in (OK, SOME_ERRORS):
            sys.exit(code)
        given = []
    print("", *table([out, *given]), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
