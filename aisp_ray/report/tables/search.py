"""The tables of a search of settings: the choice on both sets of prompts, and all trials."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aisp_ray.metrics.base import Estimate
from aisp_ray.report.tables.cells import NONE, Cell, Table, tone_of, with_ends
from aisp_ray.tune.space import text_of
from aisp_ray.tune.table import LEDGER, ranked

if TYPE_CHECKING:
    from aisp_ray.report.searches import Search
    from aisp_ray.tune.heldout import Confirmation

Row = Mapping[str, Any]  # of trials.parquet
_COSTS = dict(zip(LEDGER, ("samples", "tokens", "reward calls", "policy s", "reward s"), strict=True))


def settings_text(row: Row) -> str:
    return "the preset itself" if row["trial"] == 0 else text_of(json.loads(row["settings"]))


def estimate_of(row: Row, name: str) -> Estimate:
    """`value` or `gain` of a trial with its interval."""
    ends = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return Estimate(*(math.nan if x is None else x for x in ends), count=row["num_prompts"])


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


def trials_table(search: Search, most: int | None = None) -> Table:
    """The trials, best first; most: for a terminal, with all searched keys in one column and no costs."""
    rows, best = ranked(search.trials), search.best
    keys = search.keys if most is None else ()
    heads = ["trial", "state", *keys, "prompts", search.objective, "gain over the preset"]
    heads += _COSTS.values() if most is None else ["settings"]
    lines = [_trial(search, row, most is not None) for row in rows[:most]]
    note = (
        "Means over the prompts that a setting saw, with their 95 % bootstrap interval. Gain: mean paired difference "
        "to the preset on the same prompts, coloured where its interval leaves zero out. Settings that were stopped "
        "saw the first prompts only: compare them by their gain. Costs are sums over these prompts."
    )
    if most is not None:
        note = f"... and {len(rows) - most} more in trials.parquet" if len(rows) > most else ""
    chosen = next((i for i, row in enumerate(rows[:most]) if best is not None and row["trial"] == best["trial"]), None)
    return Table("Trials", tuple(heads), tuple(lines), note, chosen=chosen)


def _trial(search: Search, row: Row, short: bool) -> tuple[Cell, ...]:
    state = "preset" if row["trial"] == 0 else row["state"]
    if search.best is not None and row["trial"] == search.best["trial"]:
        state += ", chosen" if search.finished else ", best so far"
    settings = json.loads(row["settings"])
    found = [str(row["trial"]), state]
    found += [shown(settings[key]) if key in settings else NONE for key in search.keys] if not short else []
    cells = [Cell(text) for text in found]
    if row["reason"] is not None and not short:
        return (*cells, Cell(row["reason"], span=3 + len(_COSTS)))
    failed = f" ({row['num_failed']} without a value)" if row["num_failed"] else ""
    gain = estimate_of(row, "gain")
    cells += [Cell(f"{row['num_prompts']}{failed}"), Cell(with_ends(estimate_of(row, "value")))]
    cells.append(Cell(with_ends(gain, sign=True), tone_of(gain)) if row["trial"] else Cell(""))
    if short:
        text = text_of(settings)
        return (*cells, Cell(text if row["reason"] is None else f"{text}: {row['reason']}"))
    forms = {name: ",.1f" if name.endswith("seconds") else ",.0f" for name in _COSTS}
    return (*cells, *(Cell(NONE if row[name] is None else format(row[name], forms[name])) for name in _COSTS))


def shown(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
