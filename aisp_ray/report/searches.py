"""Reads what searches of settings left (`jobs/tune.py`): the trials, the choice, and its rows on held-out prompts.

Works on a search that still runs or was stopped; what is not there yet is None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aisp_ray.files import MANIFEST, SUMMARY, Output, inside
from aisp_ray.report.rows import first_of_each, name_of, read_json, read_parts
from aisp_ray.results import ROW_SCHEMA
from aisp_ray.tune.heldout import Confirmation, read_confirmation
from aisp_ray.tune.space import text_of
from aisp_ray.tune.store import FOLDER, SCHEMA
from aisp_ray.tune.table import NAME, choosable

HELDOUT, TUNING = "held-out prompts", "tuning prompts"


@dataclass(frozen=True, slots=True)
class Search:
    """One search's output."""

    out: str
    table: pa.Table | None  # trials.parquet; None before the first trial
    trials: Sequence[Mapping[str, Any]]  # its rows, in order of proposal
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]  # empty until the search has ended
    best_yaml: str | None
    num_evaluations: int  # rows in evaluations/, of this search and of earlier ones in the same output

    @property
    def keys(self) -> list[str]:
        """The searched keys."""
        names = self.table.column_names if self.table is not None else []
        return [name.removeprefix("key.") for name in names if name.startswith("key.")]

    @property
    def method(self) -> str:
        return self.trials[0]["method"] if self.trials else "a method"

    @property
    def objective(self) -> str:
        return self.trials[0]["objective"]

    @property
    def name(self) -> str:
        """'aisp over sigma, alpha'."""
        return f"{self.method} over {', '.join(self.keys)}" if self.keys else self.out

    @property
    def finished(self) -> bool:
        """Whether summary.json and best.yaml are of these trials: an earlier, smaller search may have left them."""
        cost, rows = self.summary.get("cost") or {}, self.trials
        seen = sum(row["num_prompts"] for row in rows)
        return bool(rows) and (cost.get("settings"), cost.get("evaluations")) == (len(rows), seen)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The chosen trial; while the search runs the best one so far that can be chosen."""
        if self.finished:
            chosen = (self.summary.get("best") or {}).get("trial")
            return next((row for row in self.trials if row["trial"] == chosen), None)
        return max(choosable(self.trials), key=lambda row: (row["value"], -row["trial"]), default=None)

    def confirmation(self, name: str) -> Confirmation | None:
        """The preset and the chosen setting on `tuning` or `heldout` prompts; None where they were not measured."""
        values = self.summary.get(name) if self.finished else None
        return read_confirmation(values) if values else None


def find_searches(outs: Sequence[str]) -> dict[str, Search]:
    """Output -> its search, of the outputs that hold one."""
    found = {out: read_search(out) for out in outs}
    return {out: search for out, search in found.items() if search is not None}


def read_search(out: str) -> Search | None:
    """The search in an output; None where there is none."""
    output = Output(out)
    evaluations = output.parquet_files(FOLDER)
    try:
        table = output.read_table(NAME)
    except FileNotFoundError:
        table = None
    if table is None and not evaluations:
        return None
    missing = {"trial", "method", "settings", "state"} - set(table.column_names if table is not None else SCHEMA.names)
    if table is not None and missing:
        raise ValueError(f"{inside(out, NAME)} is not the table of a search: it has no column {min(missing)}")
    best_yaml = output.read("best.yaml")
    return Search(
        out=out,
        table=table,
        trials=table.to_pylist() if table is not None else [],
        manifest=read_json(out, MANIFEST),
        summary=read_json(out, SUMMARY),
        best_yaml=None if best_yaml is None else best_yaml.decode(),
        num_evaluations=sum(output.read_table(name, ["prompt_id"]).num_rows for name in evaluations),
    )


# ---------------------------------------------------------------- rows of presets and chosen settings


def read_compared(searches: Sequence[Search]) -> pa.Table | None:
    """The evaluations of presets and chosen settings as rows of a report, with the columns `out` and `label`.

    On held-out prompts; where there are none (yet), on the tuning prompts. `dataset` says which. `method` is the
    label too, but of a preset: it keeps its name, so that a report's baseline finds it. None without rows.
    """
    tables = [table for search in searches if (table := _rows_of(search)) is not None]
    if not tables:
        return None
    rows = pa.concat_tables(tables)
    columns = {name: rows[name].to_pylist() for name in ("label", "thing", "out")}
    # one name for two things (another policy, other keys that were set): the first output of each tells them apart
    short = {name_of(search.out) for search in searches}
    place = {s.out: name_of(s.out) if len(short) == len(searches) else s.out for s in searches}
    meant: dict[str, dict[str, str]] = {}
    for label, thing, out in zip(columns["label"], columns["thing"], columns["out"], strict=True):
        meant.setdefault(label, {}).setdefault(thing, place[out])
    labels = [
        label if len(meant[label]) == 1 else f"{label} of {meant[label][thing]}"
        for label, thing in zip(columns["label"], columns["thing"], strict=True)
    ]
    rows = rows.drop_columns(["thing", "label"]).append_column("label", pa.array(labels, pa.string()))
    return first_of_each(rows)


def _rows_of(search: Search) -> pa.Table | None:
    prompts = search.manifest.get("prompts") or {}
    best = search.best
    if best is None or best.get("setting") is None or not prompts:
        return None
    heldout = search.finished and bool(prompts.get("heldout"))
    ids, where = (prompts["heldout"], HELDOUT) if heldout else (prompts.get("tuning") or [], TUNING)
    table = read_parts(search.out, FOLDER, SCHEMA)
    parts = []
    chosen = [(search.trials[0], f"{search.method} (preset)", search.method)]
    if best["trial"] != search.trials[0]["trial"]:
        label = f"{search.method} {text_of(json.loads(best['settings']))}"
        chosen.append((best, label, label))
    models = json.dumps([search.manifest.get("fingerprint", {}).get(k) for k in ("policy", "reward")], sort_keys=True)
    for trial, label, method in chosen:
        mask = pc.and_(pc.equal(table["setting"], trial["setting"]), pc.is_in(table["prompt_id"], pa.array(ids)))
        rows = _values_before_errors(table.filter(mask).select(ROW_SCHEMA.names)).replace_schema_metadata(None)
        datasets = [f"{name}, {where}" for name in rows["dataset"].to_pylist()]
        given = {"dataset": datasets, "method": [method] * rows.num_rows}
        for name, values in given.items():
            at = rows.schema.get_field_index(name)
            rows = rows.set_column(at, rows.schema.field(at), pa.array(values, pa.string()))
        more = {"out": search.out, "label": label, "thing": f"{trial['setting']} {models}"}
        for name, value in more.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        parts.append(rows)
    rows = pa.concat_tables(parts)
    return rows if rows.num_rows else None


def _values_before_errors(rows: pa.Table) -> pa.Table:
    """Without the error rows of prompts that were measured again (run.retry_errors) and then had a value."""
    measured = rows["prompt_id"].filter(pc.equal(rows["status"], "ok"))
    return rows.filter(pc.or_(pc.equal(rows["status"], "ok"), pc.invert(pc.is_in(rows["prompt_id"], measured))))


def baseline_of(labels: Sequence[str], methods: Sequence[str], wanted: str) -> str:
    """What the rows of `read_compared` are compared with: the baseline if it is among them, else the first preset."""
    if wanted in labels or wanted in methods:
        return wanted
    return next((label for label in labels if "(preset)" in label), wanted)


def data_manifest(search: Search) -> dict[str, Any]:
    """The manifest of an evaluation on the prompts of `read_compared`, from which judges read them again."""
    config = search.manifest.get("config") or {}
    heldout = search.finished and (search.manifest.get("prompts") or {}).get("heldout")
    if heldout and config.get("heldout"):
        return {"config": {"data": config["heldout"]}, "fingerprint": {"limit": config.get("heldout_limit")}}
    return {"config": {"data": config.get("data")}, "fingerprint": {"limit": None}}


# ---------------------------------------------------------------- what a reader must know


def search_notices(search: Search) -> Iterator[str]:
    """What to know before quoting a search, a sentence each."""
    rows = search.trials
    name = f"search of {search.name}"
    if not search.finished:
        yield (
            f"{name}: it has not ended ({len(rows)} trials, {search.num_evaluations:,} evaluations so far); "
            "run the same command again to resume it"
        )
    failed = sum(row["num_failed"] for row in rows)
    if failed:
        yield f"{name}: {failed} evaluations have no finite value and are in no mean; see the errors in evaluations/"
    tuning, heldout = (search.confirmation(part) for part in ("tuning", "heldout"))
    chosen = search.finished and search.best is not None and search.best["trial"] != 0
    if chosen and heldout is None:
        yield f"{name}: the choice was not measured on held-out prompts, so a part of its gain is luck"
    if chosen and tuning is not None and heldout is not None and not heldout.gain.low > 0:
        gain = f" ({heldout.gain.mean:+.3f})" if math.isfinite(heldout.gain.mean) else ""
        yield f"{name}: the gain of the chosen setting was not confirmed on held-out prompts{gain}"


def search_json(search: Search) -> dict[str, Any]:
    """The search in the report's summary.json."""
    parts = {name: search.confirmation(name) for name in ("tuning", "heldout")}
    return {
        "out": search.out,
        "name": search.name,
        "finished": search.finished,
        "best": None if search.best is None else {name: search.best[name] for name in ("trial", "settings", "value")},
        **{name: None if part is None else part.as_json for name, part in parts.items()},
    }
