"""From rows to everything that the table, the figures and the page show, for one dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.metrics.base import TextMetric
from aisp_ray.metrics.cost import prompts_reached, rate, samples_to_reach
from aisp_ray.metrics.overoptimisation import Transfer, transfer
from aisp_ray.report.budgets import AtSamples, at_shares
from aisp_ray.report.figures import Measured
from aisp_ray.report.rejudge import JUDGED
from aisp_ray.report.rows import Label
from aisp_ray.report.series import TRACES, curves, gain_curves, trace_matrix
from aisp_ray.report.table import (
    DEFAULT_METRICS,
    JUDGE,
    Grid,
    MethodSummary,
    by_dataset,
    measure_columns,
    summary_table,
)

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Cost:
    """What one label's rewards cost; unknown is NaN."""

    samples_to_baseline: float  # samples until its mean best-so-far reward is at the baseline's final mean
    share_reached: float  # of prompts: reached the baseline's final reward of that prompt
    median_samples: float  # of the prompts that reached it: samples needed, the median
    tokens_per_second: float  # generated tokens a second of policy time
    calls_per_second: float  # reward calls a second of reward time


@dataclass(frozen=True, slots=True)
class Section:
    """One dataset's part of a report."""

    dataset: str
    columns: Mapping[str, Sequence]
    records: Sequence[MethodSummary]
    measured: Measured
    costs: Mapping[str, Cost]
    budgets: Mapping[str, Sequence[AtSamples]]  # label -> after parts of the samples
    of_search: bool = False  # its methods are presets and chosen settings of searches


def sections(
    rows: pa.Table,
    labels: Mapping[str, Label],
    baseline: str = "best_of_n",
    seed: int = 0,
    metrics: Mapping[str, TextMetric] = DEFAULT_METRICS,
) -> list[Section]:
    """The parts of a report, one per dataset. labels: of `rows.label_map`, what sets each line apart."""
    records = summary_table(rows, baseline, seed, metrics)
    found = []
    for dataset, columns in by_dataset(rows).items():
        columns = without_failed_traces(columns)
        own = [record for record in records if record.dataset == dataset]
        base = own[0].method if own[0].baseline == own[0].method else None
        grid = Grid(columns)
        measures = measure_columns(columns, {})
        traces = curves(columns, grid, seed)
        traces["gain"] = gain_curves(columns, grid, base, seed) if base is not None else {}
        measured = Measured(
            records=own,
            curves=traces,
            rewards={record.method: grid.per_prompt(record.method, measures["reward"]) for record in own},
            transfers=transfers(grid, measures, base, seed),
            settings={name: (label.method, dict(label.differing)) for name, label in labels.items()},
            baseline=base,
        )
        spent = costs(columns, grid, measured)
        found.append(Section(dataset, columns, own, measured, spent, at_shares(columns, grid, base, seed)))
    return found


def without_failed_traces(columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
    """The columns with the traces of error rows null: what such a search had found is in no mean of the table."""
    names = [name for name in (*TRACES, "num_samples_seen", "extra", JUDGED) if name in columns]
    ok = [status == "ok" for status in columns["status"]]
    blanked = {name: [value if good else None for value, good in zip(columns[name], ok, strict=True)] for name in names}
    return {**columns, **blanked}


def transfers(
    grid: Grid, measures: Mapping[str, np.ndarray], base: str | None, seed: int
) -> dict[str, dict[str, Transfer]]:  # fmt: skip
    """Judge -> label -> how gains over the baseline carry over to it."""
    found: dict[str, dict[str, Transfer]] = {}
    for name in measures if base is not None else ():
        if name.startswith(JUDGE):
            found[name.removeprefix(JUDGE)] = {
                label: transfer(*(grid.differences(label, base, measures[key]) for key in ("reward", name)), seed)
                for label in grid.labels
                if label != base
            }
    return found


def costs(columns: Mapping[str, Sequence], grid: Grid, measured: Measured) -> dict[str, Cost]:
    """The cost of every label, against the baseline's final rewards."""
    base = measured.baseline
    targets = measured.rewards.get(base or "")
    base_curve = measured.curves["reward_best"].get(base or "")
    # the curve's own end, to the last bit: another way of summing would leave the baseline below itself
    target = base_curve.values[-1].mean if base_curve is not None and base_curve.values else math.nan
    found = {}
    for label in measured.labels:
        curve = measured.curves["reward_best"][label]
        means = np.array([value.mean for value in curve.values])
        share = (math.nan, math.nan)
        if targets is not None:
            samples = trace_matrix(grid, label, columns["num_samples_seen"], carried=True)
            best = trace_matrix(grid, label, columns["reward_best"], carried=True)
            shared = np.where(np.isfinite(measured.rewards[label]), targets, math.nan)
            share = prompts_reached(samples, best, shared)
        rows = grid.rows(label)
        found[label] = Cost(
            samples_to_reach(np.array(curve.samples), means, target) if len(means) else math.nan,
            *share,
            rate(*(_floats(columns[name], rows) for name in ("num_generated_tokens", "policy_seconds"))),
            rate(*(_floats(columns[name], rows) for name in ("num_reward_calls", "reward_seconds"))),
        )
    return found


def _floats(values: Sequence[Any], rows: Sequence[int]) -> np.ndarray:
    return np.array([math.nan if values[row] is None else float(values[row]) for row in rows])
