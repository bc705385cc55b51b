"""The tables of a search of settings: the choice on both sets of prompts, and all trials."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aisp_ray.metrics.base import Estimate
from aisp_ray.report.tables.cells import NONE, Cell, Table, tone_of, with_ends
from aisp_ray.tune.space import plain, text_of
from aisp_ray.tune.table import ranked

if TYPE_CHECKING:
    from aisp_ray.report.searches import Search
    from aisp_ray.tune.heldout import Confirmation

Row = Mapping[str, Any]  # of trials.parquet
_COSTS = {
    "num_samples": "samples",
    "num_generated_tokens": "tokens",
    "num_reward_calls": "reward calls",
    "policy_seconds": "policy s",
    "reward_seconds": "reward s",
}


def settings_text(row: Row) -> str:
    return "the preset itself" if row["trial"] == 0 else text_of(json.loads(row["settings"]))


def estimate_of(row: Row, name: str) -> Estimate:
    """`value` or `gain` of a trial with its interval."""
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    mean, low, high = (math.nan if x is None else x for x in (mean, low, high))
    return Estimate(mean, low, high, row["num_prompts"])


def choice_table(search: Search, tuning: Confirmation, heldout: Confirmation | None) -> Table:
    """The chosen setting against the preset where it was chosen, and where nothing was."""
    sets = {"tuning prompts": tuning} | ({"held-out prompts": heldout} if heldout is not None else {})
    rows = []
    for name, label in (("preset", "preset"), ("best", "chosen setting"), ("gain", "paired gain")):
        values: list[Estimate] = [getattr(each, name) for each in sets.values()]
        is_gain = name == "gain"
        cells = [Cell(with_ends(value, is_gain), tone_of(value) if is_gain else "") for value in values]
        rows.append((Cell(label), *cells))
    heads = (search.objective, *(f"{each.best.count} {name}" for name, each in sets.items()))
    note = "Mean and 95 % bootstrap interval over prompts. No setting was chosen on the held-out prompts."
    assert search.best is not None
    return Table(f"Chosen: {settings_text(search.best)}", heads, tuple(rows), note)


def trials_table(search: Search) -> Table:
    """All trials, best first."""
    rows = ranked(search.trials)
    heads = ("trial", "state", *search.keys, "prompts", search.objective, "gain over the preset", *_COSTS.values())
    note = (
        "Means over the prompts that a setting saw, with their 95 % bootstrap interval. Gain: mean paired difference "
        "to the preset on the same prompts, coloured where its interval leaves zero out. Settings that were stopped "
        "saw the first prompts only: compare them by their gain. Costs are sums over these prompts."
    )
    return Table("Trials", heads, tuple(_trial(search, row) for row in rows), note, chosen=_chosen(search, rows))


def _trial(search: Search, row: Row) -> tuple[Cell, ...]:
    settings = json.loads(row["settings"])
    state = "preset" if row["trial"] == 0 else row["state"]
    if search.best is not None and row["trial"] == search.best["trial"]:
        state += f", {_best(search)}"
    found = [str(row["trial"]), state, *(plain(settings[key]) if key in settings else NONE for key in search.keys)]
    cells = tuple(map(Cell, found))
    if row["reason"] is not None:
        return (*cells, Cell(row["reason"], span=3 + len(_COSTS)))
    failed = f" ({row['num_failed']} without a value)" if row["num_failed"] else ""
    costs = (
        format(row[n], ",.1f" if n.endswith("seconds") else ",.0f") if row[n] is not None else NONE for n in _COSTS
    )
    value = Cell(with_ends(estimate_of(row, "value")))
    return (*cells, Cell(f"{row['num_prompts']}{failed}"), value, _gain(row), *map(Cell, costs))


def short_trials_table(search: Search, most: int) -> Table:
    """The best trials for a terminal."""
    rows = ranked(search.trials)
    lines = []
    for row in rows[:most]:
        best = search.best is not None and row["trial"] == search.best["trial"]
        state = _best(search) if best else "preset" if row["trial"] == 0 else row["state"]
        value = NONE if row["value"] is None else f"{row['value']:z.3f}"
        name = f"{row['trial']}: {text_of(json.loads(row['settings']))}"
        lines.append((Cell(name), Cell(state), Cell(str(row["num_prompts"])), Cell(value), _gain(row)))
    reasons = dict.fromkeys(row["reason"] for row in rows[:most] if row["reason"])
    notes = [f"... and {len(rows) - most} more in trials.parquet"] if len(rows) > most else []
    notes += [f"invalid: {reason}" for reason in reasons]
    heads = ("trial", "state", "prompts", search.objective, "gain over the preset")
    return Table("", heads, tuple(lines), "\n".join(notes), chosen=_chosen(search, rows[:most]))


def _chosen(search: Search, rows: Sequence[Row]) -> int | None:
    best = search.best
    return next((i for i, row in enumerate(rows) if best is not None and row["trial"] == best["trial"]), None)


def _best(search: Search) -> str:
    return "chosen" if search.finished else "best so far"


def _gain(row: Row) -> Cell:
    gain = estimate_of(row, "gain")
    return Cell(with_ends(gain, sign=True), tone_of(gain)) if row["trial"] else Cell("")
