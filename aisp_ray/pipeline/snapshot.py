"""What a restart goes on from: the searches in flight between two iterations, and rows that are in no file yet.

One JSON file, overwritten whole. States are pure functions of the input, so any snapshot of the same configuration is
right, also one that another run on the same output wrote.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aisp_ray.files import STATE, Output
from aisp_ray.ledger import Progress
from aisp_ray.pipeline.codec import decode, encode

SNAPSHOT = f"{STATE}/inflight.json"
_VERSION = 1

Key = tuple[int, str]  # ordinal, method


@dataclass(frozen=True)
class Snapshot:
    """Everything of a run that is in no part file. particles: rows of the particle table, per search."""

    config_hash: str
    run_id: str = ""
    searches: Mapping[Key, Progress] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    particles: Mapping[Key, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    time: float = 0.0  # seconds since the epoch
    host: str = ""
    ended: bool = False  # the run that wrote it is over


def save(output: Output, snapshot: Snapshot) -> None:
    """Overwrite the snapshot file."""
    value = {
        "version": _VERSION,
        "config_hash": snapshot.config_hash,
        "run_id": snapshot.run_id,
        "time": time.time(),
        "host": socket.gethostname(),
        "ended": snapshot.ended,
        "searches": [[*key, encode(progress)] for key, progress in snapshot.searches.items()],
        "rows": list(snapshot.rows),
        "particles": [[*key, list(rows)] for key, rows in snapshot.particles.items()],
    }
    output.write(SNAPSHOT, json.dumps(value).encode())


def load(output: Output) -> Snapshot | None:
    """The snapshot of an earlier run, or None where there is none that this version can read."""
    value = output.read_json(SNAPSHOT)
    if value is None or value.get("version") != _VERSION:
        return None
    try:
        searches = {(ordinal, method): decode(encoded) for ordinal, method, encoded in value["searches"]}
    except ValueError:  # written by another version of the code: those searches start anew
        searches = {}
    return Snapshot(
        config_hash=value["config_hash"],
        run_id=value["run_id"],
        searches=searches,
        rows=value["rows"],
        particles={(ordinal, method): rows for ordinal, method, rows in value["particles"]},
        time=value["time"],
        host=value["host"],
        ended=value["ended"],
    )
