"""`trials.parquet`: one row per trial."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.metrics.base import Estimate, estimate
from aisp_ray.results import LEDGER, null
from aisp_ray.tune.space import Space
from aisp_ray.tune.trial import Trial

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "trials.parquet"


def trial_schema(space: Space) -> pa.Schema:
    """Columns of the table: what a trial is, what it scored, what it cost, then one column per searched key."""
    import pyarrow as pa

    known = {
        "trial": (pa.int64(), "0 is the preset"),
        "method": (pa.string(), "preset of conf/method"),
        "settings": (pa.string(), "JSON of the searched keys"),
        "setting": (pa.string(), "hash of all keys of the method: its rows in evaluations/"),
        "state": (pa.string(), "running, complete (all prompts), stopped (dropped at a rung) or invalid"),
        "reason": (pa.string(), "why it is invalid"),
        "objective": (pa.string(), "what is measured"),
        "num_prompts": (pa.int64(), "tuning prompts seen, always the first ones"),
        "num_failed": (pa.int64(), "of these, without a finite value"),
        "value": (pa.float64(), "mean over the prompts seen"),
        "value_low": (pa.float64(), "95 % bootstrap interval of it"),
        "value_high": (pa.float64(), ""),
        "gain": (pa.float64(), "mean paired difference to the preset on the prompts seen"),
        "gain_low": (pa.float64(), "95 % bootstrap interval of it"),
        "gain_high": (pa.float64(), ""),
        **{name: (pa.float64(), "sum over the prompts seen") for name in LEDGER},
    }
    fields = [pa.field(name, kind, metadata={"doc": doc}) for name, (kind, doc) in known.items()]
    for axis in space.axes():
        given = axis.values or (axis.low, axis.high)
        number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in given)
        fields.append(pa.field(f"key.{axis.key}", pa.float64() if number else pa.string()))
    return pa.schema(fields, metadata={"aisp_ray.trials": "1"})


def trial_table(
    trials: Sequence[Trial],
    space: Space,
    objective: str,
    costs: Mapping[int, Mapping[str, float]],
    known: dict[Any, tuple[Estimate, Estimate]] | None = None,
    hashes: Mapping[int, str] | None = None,
) -> pa.Table:
    """The table. costs, hashes: sums of the ledger, hash of the setting, by trial number.

    known: keeps intervals from one call to the next.
    """
    import pyarrow as pa

    schema = trial_schema(space)
    known = {} if known is None else known
    rows = []
    for trial in trials:
        at = trial.number, trial.num_seen
        if at not in known:
            values = np.asarray(trial.values, dtype=np.float64)
            known[at] = estimate(values), estimate(trial.paired(trials[0]))
        row = _row(trial, space, objective, known[at], costs.get(trial.number, {}))
        rows.append(row | {"setting": (hashes or {}).get(trial.number)})
    for row in rows:
        for name in schema.names:
            if name.startswith("key.") and pa.types.is_string(schema.field(name).type) and row[name] is not None:
                row[name] = json.dumps(row[name])
    return pa.Table.from_pylist(rows, schema=schema)


def _row(
    trial: Trial, space: Space, objective: str, known: tuple[Estimate, Estimate], cost: Mapping[str, float]
) -> dict[str, Any]:
    value, gain = known
    return {
        "trial": trial.number,
        "method": space.method,
        "settings": json.dumps(trial.settings, default=str),
        "state": trial.state,
        "reason": trial.reason,
        "objective": objective,
        "num_prompts": trial.num_seen,
        "num_failed": trial.num_failed,
        **{f"value{end}": null(x) for end, x in (("", value.mean), ("_low", value.low), ("_high", value.high))},
        **{f"gain{end}": null(x) for end, x in (("", gain.mean), ("_low", gain.low), ("_high", gain.high))},
        **{name: null(cost.get(name, math.nan)) for name in LEDGER},
        **{f"key.{axis.key}": trial.settings.get(axis.key) for axis in space.axes()},
    }


def ranked(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the table, best first; those that cannot be chosen and stopped ones follow."""
    rows = list(rows)
    first = {row["trial"] for row in choosable(rows)}
    order = {"complete": 0, "running": 1, "stopped": 2, "invalid": 3}

    def place(row: Mapping[str, Any]) -> tuple[float, ...]:
        value = -math.inf if row["value"] is None else row["value"]
        return order[row["state"]], row["trial"] not in first, -row["num_prompts"], -value, row["trial"]

    return sorted(rows, key=place)


def choosable(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that saw every prompt, without those that failed on more of them than the preset: see `Trial.score`."""
    failed = next((row["num_failed"] for row in rows if row["trial"] == 0), 0)
    complete = [row for row in rows if row["state"] == "complete" and row["value"] is not None]
    return [row for row in complete if row["num_failed"] <= failed]
