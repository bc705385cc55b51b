"""Curves over iterations, and rewards after parts of the samples: what a table of last values does not show."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aisp_ray.metrics.base import Estimate, estimates
from aisp_ray.report.rejudge import JUDGED
from aisp_ray.report.summary import Grid, mean_over_seeds
from aisp_ray.results import TRACES

_RESAMPLES = 1000  # of a curve's intervals: they are looked at, the table's are quoted
SHARES = (0.25, 0.5, 1.0)  # of the baseline's samples: the table of smaller budgets


@dataclass(frozen=True, slots=True)
class Curve:
    """A trace of one label: per iteration the mean over prompts with its interval."""

    samples: tuple[float, ...]  # drawn after each iteration, mean over prompts
    values: tuple[Estimate, ...]  # one an iteration; NaN where no prompt has a value

    @property
    def known(self) -> bool:
        return any(value.count for value in self.values)


def curves(columns: Mapping[str, Sequence], grid: Grid, seed: int = 0) -> dict[str, dict[str, Curve]]:
    """Curves by trace and label: the traces of the rows, and the lists among the methods' own diagnostics (`kl`).

    A search that ended early keeps its best reward, and what judges say of that response, to the longest search's end;
    its other traces stop.
    """
    traces = {name: columns[name] for name in TRACES} | extra_traces(columns["extra"])
    if JUDGED in columns:
        traces |= {f"{JUDGED} {name}": values for name, values in extra_traces(columns[JUDGED]).items()}
    return {
        name: {label: _curve(columns, grid, label, (name, values), seed) for label in grid.labels}
        for name, values in traces.items()
    }


def extra_traces(extras: Sequence[str | None]) -> dict[str, list[list | None]]:
    """The per-iteration lists in the `extra` JSON of rows, by name."""
    parsed = [json.loads(text) if text else {} for text in extras]
    names = dict.fromkeys(name for extra in parsed for name, value in extra.items() if isinstance(value, list))
    return {name: [extra.get(name) for extra in parsed] for name in names}


def _curve(columns: Mapping[str, Sequence], grid: Grid, label: str, trace: tuple[str, Sequence], seed: int) -> Curve:
    name, values = trace
    carried = name == "reward_best" or name.startswith(JUDGED)
    matrix = trace_matrix(grid, label, values, carried)  # [prompts, iterations]
    samples = trace_matrix(grid, label, columns["num_samples_seen"], carried)
    if not matrix.shape[1]:
        return Curve((), ())
    return Curve(tuple(_column_means(samples)), tuple(estimates(matrix, seed, _RESAMPLES)))


def trace_matrix(grid: Grid, label: str, values: Sequence[Sequence | None], carried: bool) -> np.ndarray:
    """One label's trace, float64 [prompts, iterations], seeds averaged. carried: its last value is repeated."""
    rows = grid.rows(label)
    length = max((len(values[row] or ()) for row in rows), default=0)
    flat = np.full((len(values), length), math.nan)
    for row in rows:
        trace = [math.nan if value is None else float(value) for value in values[row] or ()]
        flat[row, : len(trace)] = trace
        if carried and trace:
            flat[row, len(trace) :] = trace[-1]
    steps = [mean_over_seeds(grid.cells(label, flat[:, k])) for k in range(length)]
    return np.stack(steps, axis=1) if steps else np.empty((len(grid.prompts), 0))


def gain_curves(columns: Mapping[str, Sequence], grid: Grid, base: str, seed: int = 0) -> dict[str, Curve]:
    """Best reward so far minus the baseline's after as many samples, by label: paired, so its interval is narrow.

    Where the baseline drew in larger rounds, its best after the last round that fits counts.
    """
    base_samples, base_best = _best_matrices(columns, grid, base)
    found = {}
    for label in grid.labels:
        samples, best = _best_matrices(columns, grid, label)
        gains = np.full_like(best, math.nan)
        for k in range(best.shape[1] if base_best.size else 0):
            fits = (base_samples <= samples[:, k : k + 1]).sum(1) - 1  # [prompts], -1: no round fits
            at_base = np.take_along_axis(base_best, np.maximum(fits, 0)[:, None], axis=1)[:, 0]
            gains[:, k] = np.where(fits >= 0, best[:, k] - at_base, math.nan)
        if label != base and gains.size:
            found[label] = Curve(tuple(_column_means(samples)), tuple(estimates(gains, seed, _RESAMPLES)))
    return found


def _best_matrices(columns: Mapping[str, Sequence], grid: Grid, label: str) -> tuple[np.ndarray, np.ndarray]:
    """(samples, best-so-far reward) of one label, [prompts, iterations] each."""
    names = ("num_samples_seen", "reward_best")
    samples, best = (trace_matrix(grid, label, columns[name], carried=True) for name in names)
    return samples, best


def _column_means(matrix: np.ndarray) -> list[float]:
    return [float(np.nanmean(column)) if np.isfinite(column).any() else math.nan for column in matrix.T]


@dataclass(frozen=True, slots=True)
class AtSamples:
    """One label after a number of samples per prompt."""

    samples: float
    reward: Estimate  # best so far, mean over prompts
    gain: Estimate  # over the baseline's best so far after as many samples, paired; NaN for the baseline itself


def at_shares(
    columns: Mapping[str, Sequence], grid: Grid, base: str | None, seed: int = 0
) -> dict[str, tuple[AtSamples, ...]]:
    """Per label, best reward so far after each of `SHARES` of the samples that the baseline draws per prompt.

    Without a baseline: of the most that any label draws. A round counts once it is drawn whole; a label whose first
    round is larger has no value. A search that ended earlier keeps its best reward.
    """
    shown = [base] if base is not None else grid.labels
    drawn = [columns["num_samples_seen"][row] for label in shown for row in grid.rows(label)]
    budget = max((samples[-1] for samples in drawn if samples), default=0)
    if not budget:
        return {}
    counts = [share * budget for share in SHARES]
    best = [_after(columns["num_samples_seen"], columns["reward_best"], count) for count in counts]
    lines = {}
    for label in sorted(grid.labels, key=lambda label: label != base):
        rewards = np.stack([grid.per_prompt(label, values) for values in best], axis=1)
        gains = np.full_like(rewards, math.nan)
        if base not in (None, label):
            gains = np.stack([grid.differences(label, base, values) for values in best], axis=1)
        triples = zip(counts, estimates(rewards, seed), estimates(gains, seed), strict=True)
        lines[label] = tuple(AtSamples(*triple) for triple in triples)
    return lines


def _after(samples: Sequence[Sequence | None], best: Sequence[Sequence | None], count: float) -> np.ndarray:
    """Each row's best reward after at most `count` samples, float64 [rows]; NaN where its first round is larger."""
    values = np.full(len(samples), math.nan)
    for row, (seen, traced) in enumerate(zip(samples, best, strict=True)):
        fits = sum(number <= count for number in seen or ())
        if traced is not None and fits and traced[fits - 1] is not None:
            values[row] = traced[fits - 1]
    return values
