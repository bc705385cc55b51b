"""From rows to everything that the tables, the figures and the page show, for one dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.metrics.base import Estimate, TextMetric, estimates
from aisp_ray.metrics.cost import prompts_reached, rate, samples_to_reach
from aisp_ray.metrics.overoptimisation import Transfer, transfer
from aisp_ray.report.rejudge import JUDGED
from aisp_ray.report.rows import Label
from aisp_ray.report.series import (
    AtSamples,
    Curve,
    at_shares,
    curves,
    extra_traces,
    gain_curves,
    trace_matrix,
)
from aisp_ray.report.summary import (
    DEFAULT_METRICS,
    JUDGE,
    Grid,
    MethodSummary,
    by_dataset,
    floats,
    measure_columns,
    summarise,
)
from aisp_ray.results import TRACES

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
    """One dataset's part of a report. Labels come in the table's order, the baseline first."""

    dataset: str
    columns: Mapping[str, Sequence]
    records: Sequence[MethodSummary]
    baseline: str | None
    curves: Mapping[str, Mapping[str, Curve]]  # trace -> label -> curve
    last: Mapping[str, Mapping[str, Estimate]]  # control_norm, kl...: label -> its value when the search ended
    rewards: Mapping[str, np.ndarray]  # label -> [prompts]
    transfers: Mapping[str, Mapping[str, Transfer]]  # judge -> label -> against the baseline
    settings: Mapping[str, tuple[str, Mapping[str, Any]]]  # label -> (method, the settings that set it apart)
    costs: Mapping[str, Cost]
    budgets: Mapping[str, Sequence[AtSamples]]  # label -> after parts of the samples
    of_search: bool = False  # its methods are presets and chosen settings of searches

    @property
    def labels(self) -> list[str]:
        return [record.method for record in self.records]


def sections(
    rows: pa.Table,
    labels: Mapping[str, Label],
    baseline: str = "best_of_n",
    seed: int = 0,
    metrics: Mapping[str, TextMetric] = DEFAULT_METRICS,
    of_search: bool = False,
) -> list[Section]:
    """The parts of a report, one per dataset. labels: of `rows.read_labelled`, what sets each line apart."""
    found = []
    for dataset, raw in by_dataset(rows).items():
        columns = without_failed_traces(raw)
        grid = Grid(columns)
        measures = measure_columns(columns, metrics)
        records = summarise(dataset, columns, grid, measures, (baseline, seed))
        base = records[0].method if records[0].baseline == records[0].method else None
        traces = curves(columns, grid, seed)
        traces["gain"] = gain_curves(columns, grid, base, seed) if base is not None else {}
        rewards = {record.method: grid.per_prompt(record.method, measures["reward"]) for record in records}
        found.append(
            Section(
                dataset=dataset,
                columns=columns,
                records=records,
                baseline=base,
                curves=traces,
                last=last_values(columns, grid, seed),
                rewards=rewards,
                transfers=transfers(grid, measures, base, seed),
                settings={name: (label.method, dict(label.differing)) for name, label in labels.items()},
                costs=costs(columns, grid, base, traces["reward_best"], rewards),
                budgets=at_shares(columns, grid, base, seed),
                of_search=of_search,
            )
        )
    return found


def without_failed_traces(columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
    """The columns with the traces of error rows null: what such a search had found is in no mean of the table."""
    names = [name for name in (*TRACES, "num_samples_seen", "extra", JUDGED) if name in columns]
    ok = [status == "ok" for status in columns["status"]]
    blanked = {name: [value if good else None for value, good in zip(columns[name], ok, strict=True)] for name in names}
    return {**columns, **blanked}


def last_values(columns: Mapping[str, Sequence], grid: Grid, seed: int) -> dict[str, dict[str, Estimate]]:
    """The control's norm and divergences after a search's last iteration, means over prompts."""
    traces = {"control_norm": columns["control_norm"]} | extra_traces(columns["extra"])
    found = {}
    for name, values in traces.items():
        if name == "control_norm" or name.startswith("kl"):
            ends = floats([next((x for x in reversed(trace or ()) if x is not None), None) for trace in values])
            per_label = np.stack([grid.per_prompt(label, ends) for label in grid.labels], axis=1)
            found[name] = dict(zip(grid.labels, estimates(per_label, seed), strict=True))
    return found


def transfers(
    grid: Grid, measures: Mapping[str, np.ndarray], base: str | None, seed: int
) -> dict[str, dict[str, Transfer]]:  # fmt: skip
    """Judge -> label -> how gains over the baseline carry over to it."""
    found: dict[str, dict[str, Transfer]] = {}
    if base is None:
        return found
    for name in measures:
        if name.startswith(JUDGE):
            gains = {
                label: [grid.differences(label, base, measures[key]) for key in ("reward", name)]
                for label in grid.labels
                if label != base
            }
            found[name.removeprefix(JUDGE)] = {label: transfer(pair[0], pair[1], seed) for label, pair in gains.items()}
    return found


def costs(
    columns: Mapping[str, Sequence],
    grid: Grid,
    base: str | None,
    best_curves: Mapping[str, Curve],
    rewards: Mapping[str, np.ndarray],
) -> dict[str, Cost]:
    """The cost of every label, against the baseline's final rewards."""
    targets = rewards.get(base or "")
    base_curve = best_curves.get(base or "")
    # the curve's own end, to the last bit: another way of summing would leave the baseline below itself
    target = base_curve.values[-1].mean if base_curve is not None and base_curve.values else math.nan
    found = {}
    for label, curve in best_curves.items():
        means = np.array([value.mean for value in curve.values])
        share = (math.nan, math.nan)
        if targets is not None:
            samples, best = (
                trace_matrix(grid, label, columns[name], carried=True) for name in ("num_samples_seen", "reward_best")
            )
            share = prompts_reached(samples, best, np.where(np.isfinite(rewards[label]), targets, math.nan))
        spent = {
            name: floats([columns[name][row] for row in grid.rows(label)])
            for name in ("num_generated_tokens", "policy_seconds", "num_reward_calls", "reward_seconds")
        }
        found[label] = Cost(
            samples_to_reach(np.array(curve.samples), means, target) if len(means) else math.nan,
            *share,
            rate(spent["num_generated_tokens"], spent["policy_seconds"]),
            rate(spent["num_reward_calls"], spent["reward_seconds"]),
        )
    return found
