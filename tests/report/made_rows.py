"""Rows in the schema of an evaluation, made from named randomness: what the tests of reports read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aisp_ray.results import PARTICLE_SCHEMA, ROW_SCHEMA
from aisp_ray.rng import generator

_TEXT = "please open the app then check your order and press cancel if it is late we are happy to help you today"
WORDS = _TEXT.split(" ")
GAINS = {"best_of_n": 0.0, "best_of_n_tuned": 0.1, "noise_only": 0.05, "aisp": 0.15}


def made_row(method: str, ordinal: int, seed: int, kappa: int = 8, n: int = 4) -> dict:
    """One row, its numbers functions of (method, ordinal, seed)."""
    rng = generator("made rows", method, ordinal, seed)
    ease = generator("made prompt", ordinal).normal()
    means = ease + GAINS.get(method, 0.2) + rng.normal(0, 0.3, (kappa, n)) + 0.05 * (len(method) % 3)
    best = [float(means[: k + 1].max()) for k in range(kappa)]
    adapts = method.startswith("aisp")
    response = " ".join(rng.choice(WORDS, rng.integers(5, 40))) + "."
    return {
        "run_id": f"run-{seed}",
        "config_hash": f"hash-{seed}",
        "prompt_id": f"made/test/{ordinal:08d}",
        "ordinal": ordinal,
        "dataset": "made",
        "method": method,
        "prompt": f"Question {ordinal}: {' '.join(generator('made question', ordinal).choice(WORDS, 9))}?",
        "response": response,
        "reward": best[-1],
        "status": "ok",
        "error": None,
        "finish_reason": "stop",
        "num_samples": n * kappa,
        "num_generated_tokens": int(rng.integers(500, 900)),
        "num_prompt_tokens": 20 + ordinal % 7,
        "num_reward_calls": n * kappa,
        "num_failed_particles": 0,
        "policy_seconds": float(rng.uniform(0.5, 0.7)),
        "reward_seconds": float(rng.uniform(0.1, 0.2)),
        "wall_seconds": float(rng.uniform(0.9, 1.2)),
        "reward_mean": means.mean(1).tolist(),
        "reward_max": means.max(1).tolist(),
        "reward_best": best,
        "ess": rng.uniform(1, n, kappa).tolist() if adapts else [None] * kappa,
        "control_norm": (10 * (1.0 + rng.random(kappa).cumsum())).tolist() if adapts else [0.0] * kappa,
        "num_samples_seen": [n * (k + 1) for k in range(kappa)],
        "judge_names": ["second_opinion", "gold"],
        "judge_rewards": [best[-1] / 2 + rng.normal(0, 0.2), None if ordinal % 10 == 3 else rng.normal()],
        "seed": seed,
        "extra": json.dumps({"kl": (0.5 * rng.random(kappa).cumsum()).tolist()}) if adapts else None,
    }


def made_error(method: str, ordinal: int, seed: int) -> dict:
    """A row of a prompt that could not be used."""
    kept = made_row(method, ordinal, seed)
    kept |= {name: None for name in kept if name.startswith(("reward", "judge", "num_", "policy", "wall"))}
    kept |= {"response": None, "status": "error", "error": "the prompt is empty", "finish_reason": None}
    return kept | {"ess": [], "control_norm": [], "extra": None}


def made_particles(method: str, ordinal: int, seed: int, kappa: int = 8, n: int = 4) -> list[dict]:
    """The particles of one prompt, some failed, some equal."""
    rng = generator("made particles", method, ordinal, seed)
    rows = []
    for k in range(kappa):
        for i in range(n):
            failed = (k, i) == (1, 1)
            rows.append(
                {
                    "run_id": f"run-{seed}",
                    "prompt_id": f"made/test/{ordinal:08d}",
                    "ordinal": ordinal,
                    "method": method,
                    "iteration": k,
                    "particle": i,
                    "response": " ".join(rng.choice(WORDS, rng.integers(3, 12))) + ".",
                    "reward": None if failed else float(rng.normal()),
                    "error": "no finite reward" if failed else None,
                    "finish_reason": "stop",
                    "num_generated_tokens": 10,
                    "logprob": None,
                }
            )
    return rows


def write_output(out: Path, rows: list[dict], config: dict | None = None, particles: list[dict] | None = None) -> Path:
    """An output folder as an evaluation leaves it: two files of rows, a manifest, perhaps particles."""
    (out / "rows").mkdir(parents=True)
    half = len(rows) // 2
    for i, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part, schema=ROW_SCHEMA), out / "rows" / f"part-{i:05d}.parquet")
    if particles:
        (out / "particles").mkdir()
        pq.write_table(pa.Table.from_pylist(particles, schema=PARTICLE_SCHEMA), out / "particles" / "part-0.parquet")
    if config is not None:
        (out / "manifest.json").write_text(json.dumps({"config": config}))
    return out
