"""What a restart resumes from: the searches in flight between two iterations, and rows that are in no file yet.

One JSON file, overwritten whole. States are pure functions of the input, so any snapshot of the same configuration is
right, also one that another run on the same output wrote. How a budget over all prompts was shared out is a second
file.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from aisp_ray.errors import RefusedError
from aisp_ray.files import STATE, Output, inside, to_table
from aisp_ray.ledger import Progress
from aisp_ray.methods.base import State
from aisp_ray.methods.total_budget import Shares, TotalBudget
from aisp_ray.pipeline.codec import decode, encode
from aisp_ray.plan import Plan
from aisp_ray.results import PARTICLE_SCHEMA, ROW_SCHEMA

log = logging.getLogger(__name__)

SHARES = f"{STATE}/shares.json"
SNAPSHOT = f"{STATE}/inflight.json"  # of a run without shards (`shards.RunShard.snapshot`)
_VERSION = 1

Key = tuple[int, str]  # ordinal, method


@dataclass(frozen=True)
class RunSnapshot:
    """Everything of a run that is in no part file. particles: rows of the particle table, per search."""

    config_hash: str
    run_id: str = ""
    searches: Mapping[Key, Progress] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    particles: Mapping[Key, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    time: float = 0.0  # seconds since the epoch
    host: str = ""
    ended: bool = False  # the run that wrote it is over


def save(output: Output, snapshot: RunSnapshot, name: str = SNAPSHOT) -> None:
    """Overwrite the snapshot file."""
    head = {
        "version": _VERSION,
        "config_hash": snapshot.config_hash,
        "run_id": snapshot.run_id,
        "time": time.time(),
        "host": socket.gethostname(),
        "ended": snapshot.ended,
    }
    lists: dict[str, Iterator[Any]] = {
        "searches": ([*key, encode(progress)] for key, progress in snapshot.searches.items()),
        "rows": iter(snapshot.rows),
        "particles": ([*key, list(rows)] for key, rows in snapshot.particles.items()),
    }
    # item by item: of thousands of searches in flight only the text is held, not all that it is made of
    fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    fields += [f"{json.dumps(name)}: [{', '.join(map(json.dumps, items))}]" for name, items in lists.items()]
    output.write(name, f"{{{', '.join(fields)}}}".encode())


def load(output: Output, config_hash: str, packages: Collection[str] = (), name: str = SNAPSHOT) -> RunSnapshot | None:
    """The snapshot of an earlier run of this configuration; None where there is none, or none that can be read.

    packages: those of the configured methods, whose states may be in it (`codec.decode`).
    """
    try:
        value = output.read_json(name)
        if value is None or value["config_hash"] != config_hash:  # before anything is made of it
            return None
        if value["version"] != _VERSION:
            raise ValueError(f"it is of version {value['version']}, and this is version {_VERSION}")
        return _snapshot_of(value, packages)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        where = inside(output.out, name)
        log.warning("%s cannot be read: what was under way starts anew (%s: %s)", where, type(error).__name__, error)
        return None


def _snapshot_of(value: Mapping[str, Any], packages: Collection[str]) -> RunSnapshot:
    """Raises ValueError, KeyError or TypeError where rows or particles are not what `save` writes."""
    rows = value["rows"]
    _require(rows, ROW_SCHEMA, {"ordinal": int, "method": str, "status": str})
    particles = {_key(ordinal, method): rows for ordinal, method, rows in value["particles"]}
    for of_search in particles.values():
        _require(of_search, PARTICLE_SCHEMA, {"iteration": int})
    return RunSnapshot(
        config_hash=value["config_hash"],
        run_id=str(value["run_id"]),
        searches=_searches_of(value["searches"], packages),
        rows=rows,
        particles=particles,
        time=float(value["time"]),
        host=str(value["host"]),
        ended=bool(value["ended"]),
    )


def _searches_of(encoded: Sequence[Any], packages: Collection[str]) -> dict[Key, Progress]:
    searches = {}
    try:
        for ordinal, method, search in encoded:
            progress = searches[_key(ordinal, method)] = decode(search, packages)
            if not (isinstance(progress, Progress) and isinstance(progress.state, State)):
                raise ValueError(f"{search!r:.60} is no progress of a search")
    except ValueError as error:  # written by another version of the code; the finished rows are good
        log.warning("the searches under way start anew: %s", error)
        return {}
    return searches


def _key(ordinal: Any, method: Any) -> Key:
    if not isinstance(ordinal, int) or not isinstance(method, str):
        raise ValueError(f"{ordinal!r:.60} and {method!r:.60} are no ordinal and no method")
    return ordinal, method


def _require(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, needed: Mapping[str, type]) -> None:
    """Raises ValueError, KeyError or TypeError for rows that a part file could not take, or that lack what is read."""
    to_table(rows, schema)
    for row in rows:
        for name, kind in needed.items():
            if not isinstance(row[name], kind):
                raise ValueError(f"{name} is {row[name]!r:.60}")


def total_budget(output: Output, plan: Plan, num_rows: int) -> TotalBudget | None:
    """The budget over all prompts, with what an earlier run decided; None where the plan has none.

    num_rows: those that an earlier run left, which there are only once all of the budget has been shared out.

    Raises:
        RefusedError: there are rows, and what was decided is missing.
    """
    if plan.total is None:
        return None
    known = output.read_json(SHARES)
    if known is not None and known["config_hash"] == plan.config_hash:
        shares = {name: {int(at): k for at, k in mine.items()} for name, mine in known["iterations"].items()}
        return TotalBudget(plan.total, shares)
    if num_rows:
        missing = inside(plan.out, SHARES)
        raise RefusedError(f"{missing} is missing, without which the rows cannot be resumed; give another out")

    def keep(shares: Shares) -> None:
        output.write_json(SHARES, {"config_hash": plan.config_hash, "iterations": shares})

    return TotalBudget(plan.total, keep=keep)
