"""The numbers of an evaluation's table: one typed record per method and dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.metrics.base import Estimate, TextMetric, estimates
from aisp_ray.metrics.diversity import Diversity
from aisp_ray.metrics.length import Length
from aisp_ray.metrics.paired import Paired, paired
from aisp_ray.results import LEDGER, null

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_METRICS: Mapping[str, TextMetric] = {
    "diversity": Diversity(),
    "diversity_plus_one": Diversity(plus_one=True),
    "words": Length(),
}
JUDGE = "judge "  # how a judge's measure is told from others


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One line of the table. Means are over prompts, after a prompt's seeds were averaged; what is unknown is NaN."""

    method: str  # the label: method, and the settings that differ between outputs
    dataset: str
    num_prompts: int  # prompts with a reward
    num_rows: int  # rows, of all seeds
    num_errors: int  # rows with status=error
    num_seeds: int
    reward: Estimate
    baseline: str  # what `paired` compares with
    paired: Paired | None  # None for the baseline itself, and where it has no rows
    num_samples: float  # responses drawn, mean per row
    num_generated_tokens: float  # mean per row, over all its responses
    policy_seconds: float  # mean per row: its share of the policy's time
    reward_seconds: float  # mean per row: its share of the reward model's time
    wall_seconds: float  # mean per row, from its first proposal to its last reward
    metrics: Mapping[str, Estimate] = field(default_factory=dict)  # text metrics by name
    judges: Mapping[str, Estimate] = field(default_factory=dict)  # held-out rewards by the judge's name
    judges_paired: Mapping[str, Paired] = field(default_factory=dict)  # against the baseline; empty for itself


_LEDGER = tuple(name for name in LEDGER if name in MethodSummary.__slots__)


def summary_table(rows: pa.Table, baseline: str = "best_of_n") -> list[MethodSummary]:
    """The records of the table, datasets and methods in the order in which they first occur, the baseline first.

    rows: of `read_rows` (or any table with the columns of `results.ROW_SCHEMA`; methods are then its `method`s).
    baseline: a label or a method's name.
    """
    records: list[MethodSummary] = []
    for dataset, columns in by_dataset(rows).items():
        measures = measure_columns(columns, DEFAULT_METRICS)
        records += summarise(dataset, columns, Grid(columns), measures, (baseline, 0))
    return records


def by_dataset(rows: pa.Table) -> dict[str, dict[str, list]]:
    """The columns as lists, per dataset: rewards of different prompts' sets are never averaged together."""
    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    columns.setdefault("label", columns["method"])
    parts = {}
    for dataset in dict.fromkeys(columns["dataset"]):
        chosen = [i for i, name in enumerate(columns["dataset"]) if name == dataset]
        parts[str(dataset)] = {name: [values[i] for i in chosen] for name, values in columns.items()}
    return parts


def summarise(
    dataset: str,
    columns: Mapping[str, Sequence],
    grid: Grid,
    measures: Mapping[str, np.ndarray],
    against: tuple[str, int],
) -> list[MethodSummary]:
    """The records of one dataset. measures: of `measure_columns`; against: the baseline and the bootstrap's seed."""
    baseline, seed = against
    base = find_baseline(columns, baseline)
    labels = sorted(grid.labels, key=lambda label: label != base)
    means = [grid.per_prompt(label, values) for values in measures.values() for label in labels]
    flat = iter(estimates(np.stack(means, axis=1), seed))
    found = {name: {label: next(flat) for label in labels} for name in measures}
    judges = [name for name in measures if name.startswith(JUDGE)]
    records = []
    for label in labels:
        pairs = {}
        if base is not None and label != base:
            names = ("reward", *judges)
            pairs = {name: paired(grid.differences(label, base, measures[name]), seed) for name in names}
        records.append(
            MethodSummary(
                method=label,
                dataset=dataset,
                num_prompts=found["reward"][label].count,
                reward=found["reward"][label],
                baseline=base or baseline,
                paired=pairs.pop("reward", None),
                metrics={name: found[name][label] for name in measures if name != "reward" and name not in judges},
                judges={name.removeprefix(JUDGE): found[name][label] for name in judges},
                judges_paired={name.removeprefix(JUDGE): pair for name, pair in pairs.items()},
                **ledger(columns, grid.rows(label)),
            )
        )
    return records


def ledger(columns: Mapping[str, Sequence], rows: Sequence[int]) -> dict[str, Any]:
    """Counts of these rows, and what one of them cost in the mean over those that worked."""
    worked = [row for row in rows if columns["status"][row] == "ok"]
    return {
        "num_rows": len(rows),
        "num_errors": len(rows) - len(worked),
        "num_seeds": len({columns["seed"][row] for row in rows}),
        **{name: _mean([columns[name][row] for row in worked]) for name in _LEDGER},
    }


def find_baseline(columns: Mapping[str, Sequence], baseline: str) -> str | None:
    """The label that `baseline` means: itself, or the first label of the method of that name; None without a row."""
    if baseline in columns["label"]:
        return baseline
    pairs = zip(columns["method"], columns["label"], strict=True)
    return next((label for method, label in pairs if method == baseline), None)


def measure_columns(columns: Mapping[str, Sequence], metrics: Mapping[str, TextMetric]) -> dict[str, np.ndarray]:
    """Per-row measures, float64 [rows] each: `reward`, the text metrics by name, and `JUDGE + name`; NaN where null."""
    ok = np.array([status == "ok" for status in columns["status"]])
    measures = {"reward": floats(columns["reward"])}
    for name, metric in metrics.items():
        measures[name] = np.asarray(metric.compute(columns["prompt"], columns["response"]), dtype=np.float64)
    judged = [
        dict(zip(names or (), rewards or (), strict=False))
        for names, rewards in zip(columns["judge_names"], columns["judge_rewards"], strict=True)
    ]
    for name in dict.fromkeys(name for row in judged for name in row):
        measures[f"{JUDGE}{name}"] = floats([row.get(name) for row in judged])
    return {name: np.where(ok & np.isfinite(values), values, math.nan) for name, values in measures.items()}


class Grid:
    """Rows laid out as prompts by seeds, per label. A prompt is its id and its text, so two sets never mix."""

    def __init__(self, columns: Mapping[str, Sequence]) -> None:
        prompts = [(str(i), text or "") for i, text in zip(columns["prompt_id"], columns["prompt"], strict=True)]
        self.prompts = {prompt: i for i, prompt in enumerate(sorted(set(prompts)))}  # draws follow it
        self.seeds = {seed: i for i, seed in enumerate(dict.fromkeys(columns["seed"]))}
        self._where: dict[str, tuple[list[int], list[int], list[int]]] = {}
        for row, (label, prompt, seed) in enumerate(zip(columns["label"], prompts, columns["seed"], strict=True)):
            at = self._where.setdefault(label, ([], [], []))
            at[0].append(row)
            at[1].append(self.prompts[prompt])
            at[2].append(self.seeds[seed])

    @property
    def labels(self) -> list[str]:
        return list(self._where)

    def rows(self, label: str) -> list[int]:
        """Positions of the label's rows."""
        return self._where[label][0]

    def cells(self, label: str, values: np.ndarray) -> np.ndarray:
        """One label's values, float64 [prompts, seeds], NaN where it has no row."""
        rows, prompts, seeds = self._where[label]
        cells = np.full((len(self.prompts), len(self.seeds)), math.nan)
        cells[prompts, seeds] = values[rows]
        return cells

    def per_prompt(self, label: str, values: np.ndarray) -> np.ndarray:
        """One label's values averaged over seeds, float64 [prompts]."""
        return mean_over_seeds(self.cells(label, values))

    def differences(self, label: str, other: str, values: np.ndarray) -> np.ndarray:
        """Label minus other, on the seeds of a prompt that both have, averaged over them; float64 [prompts]."""
        return mean_over_seeds(self.cells(label, values) - self.cells(other, values))


def mean_over_seeds(cells: np.ndarray) -> np.ndarray:
    """Row means of [prompts, seeds] over what is present; NaN where nothing is."""
    present = np.isfinite(cells)
    count = present.sum(1)
    return np.where(count > 0, np.where(present, cells, 0.0).sum(1) / np.maximum(count, 1), math.nan)


def floats(values: Sequence) -> np.ndarray:
    """float64 [values], NaN for None."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _mean(values: Sequence) -> float:
    present = [float(value) for value in values if value is not None and math.isfinite(value)]
    return math.fsum(present) / len(present) if present else math.nan


def flat(record: MethodSummary) -> dict[str, Any]:
    """Every value of a record by the name of its CSV column; what is unknown is None."""
    values: dict[str, Any] = {
        name: getattr(record, name)
        for name in ("dataset", "method", "num_prompts", "num_rows", "num_errors", "num_seeds")
    }
    values |= _ends("reward", record.reward) | {"baseline": record.baseline} | _pair("", record.paired)
    values |= {name: getattr(record, name) for name in _LEDGER}
    for name, value in record.metrics.items():
        values |= _ends(name, value)
    for name, value in record.judges.items():
        values |= _ends(f"judge_{name}", value) | _pair(f"judge_{name}_", record.judges_paired.get(name))
    return null(values)


def _ends(name: str, value: Estimate | None) -> dict[str, Any]:
    ends = {"": "mean", "_low": "low", "_high": "high", "_count": "count"}
    return {name + end: getattr(value, field, None) for end, field in ends.items()}


def _pair(prefix: str, pair: Paired | None) -> dict[str, Any]:
    """The paired columns; wins are not counted where no prompt is shared."""
    known = pair if pair is not None and pair.difference.count else None
    wins = {prefix + name: getattr(known, name, None) for name in ("wins", "ties", "losses", "win_rate")}
    return _ends(f"{prefix}difference", pair.difference if pair is not None else None) | wins


def summary_json(records: Sequence[MethodSummary]) -> list[dict[str, Any]]:
    """The records as JSON values: NaN is null."""
    return null([asdict(record) for record in records])
