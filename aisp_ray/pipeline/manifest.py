"""What a run writes about itself: `manifest.json` (what decides its numbers) and `summary.json` (how it went)."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import socket
import sys
import time
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from aisp_ray import __version__
from aisp_ray.cluster.pool import Pool, Replica
from aisp_ray.errors import RefusedError, redacted
from aisp_ray.files import MANIFEST, ROWS, Output, as_json, differences, inside, mixed, read_manifest
from aisp_ray.plan import Plan
from aisp_ray.results import SCHEMA_VERSION

_PACKAGES = ("ray", "torch", "transformers", "pyarrow", "numpy", "datasets")


def open_manifest(plan: Plan, output: Output, run_id: str) -> dict[str, Any]:
    """The manifest of this run on this output; it continues that of earlier runs.

    Raises:
        RefusedError: the output holds rows of another configuration and `run.on_mismatch` is refuse, a search, or a
            manifest that cannot be read.
    """
    now = _manifest(plan)
    before = read_manifest(output)
    if before is not None and (not isinstance(before, dict) or "methods" not in before):
        raise RefusedError(f"{plan.out} holds a search of settings (jobs/tune.py); give another out")
    if before is not None:
        now = _go_on(plan, output, before, now)
    elif output.parts():
        raise RefusedError(
            f"{inside(plan.out, ROWS)} holds files but there is no {MANIFEST} beside them; give another out"
        )
    now["runs"].append(_record_of(run_id, plan.run.shard))
    return now


def save_manifest(output: Output, manifest: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """Write it, with what other runs on this output have noted in it since: their records and engines.

    Returns the entries of these two.
    """
    try:
        there = output.read_json(MANIFEST) or {}
    except ValueError:  # damaged since this run began; nothing in it is needed
        there = {}
    known = {record["run_id"]: record for record in manifest["runs"]}
    known |= {record["run_id"]: record for record in there.get("runs", ()) if record["run_id"] != run_id}
    engines = list(manifest.get("engine", ()))
    merged = {
        "runs": sorted(known.values(), key=lambda record: record["started"]),
        "engine": engines + [engine for engine in there.get("engine", ()) if engine not in engines],
    }
    output.write_json(MANIFEST, {**manifest, **merged})
    return merged


def _record_of(run_id: str, shard: str | None) -> dict[str, Any]:
    command = [redacted(word) for word in sys.argv]
    record = {"run_id": run_id, "started": time.time(), "host": socket.gethostname(), "command": command}
    return record if shard is None else {**record, "shard": shard}


def _manifest(plan: Plan) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "aisp_ray": __version__,
        "config_hash": plan.config_hash,
        "chunk_rows": plan.run.chunk_rows,
        "methods": list(plan.methods),
        "fingerprint": plan.fingerprint,
        "data": plan.data.fingerprint(),
        "config": plan.config,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "runs": [],
    }


def _go_on(plan: Plan, output: Output, before: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    if before.get("schema_version") != SCHEMA_VERSION or not {"fingerprint", "data", "chunk_rows", "runs"} <= {*before}:
        raise RefusedError(
            f"{plan.out} was written with schema_version {before.get('schema_version')}, and this version writes "
            f"{SCHEMA_VERSION}; give another out, or run the version that wrote it ({before.get('aisp_ray')})"
        )
    lines = differences(before["fingerprint"], as_json(now["fingerprint"]))
    lines += differences(before["data"], as_json(now["data"]), "data")
    kept_differences = mixed(f"{plan.out} holds rows", before, lines, plan.run.on_mismatch)
    if kept_differences is None:
        output.clear()
        output.remove(MANIFEST)
        return now
    kept = {"chunk_rows": before["chunk_rows"], "runs": before["runs"], "engine": before.get("engine", [])}
    return {**now, **kept, **({"ignored_differences": kept_differences} if kept_differences else {})}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Tally:
    """Rows of one method: how many, how good."""

    def __init__(self) -> None:
        self.ok = 0
        self.errors = 0
        self._sum = Fraction(0)  # exact, so the mean does not depend on which search ended first

    def add(self, status: str, reward: float | None) -> None:
        if status == "ok" and reward is not None:
            self.ok += 1
            self._sum += Fraction(float(reward))
        else:
            self.errors += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.ok + self.errors,
            "errors": self.errors,
            "mean_reward": float(self._sum / self.ok) if self.ok else None,
        }


def summary_of(facts: Mapping[str, Any], tallies: Mapping[str, Tally], pools: Mapping[str, Pool]) -> dict[str, Any]:
    """How a run went: facts (run id, exit code, seconds ...), rows by method, retries by kind, what each actor did."""
    replicas = [
        replica_summary(name, replica) for name, pool in pools.items() for replica in (*pool.gone, *pool.replicas)
    ]
    hits, misses = (sum(r["stats"].get(f"prefix_{kind}", 0) for r in replicas) for kind in ("hits", "misses"))
    return {
        **facts,
        "methods": {method: tally.as_json() for method, tally in tallies.items()},
        "retries": {name: _events(pool, "retry ") for name, pool in pools.items()},
        "ended": {name: _events(pool, "ended ") for name, pool in pools.items()},
        "prefix_hit_rate": hits / (hits + misses) if hits + misses else None,
        "replicas": replicas,
    }


def _events(pool: Pool, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): n for name, n in sorted(pool.events.items()) if name.startswith(prefix)}


def replica_summary(pool: str, replica: Replica) -> dict[str, Any]:
    """Seconds that an actor waited for a machine, loaded, and was ready, and how busy it was then."""
    now = replica.ended or time.monotonic()
    busy = replica.stats.get("busy_seconds", math.nan)
    ready = now - replica.ready if replica.ready else 0.0
    return {
        "pool": pool,
        "name": replica.name,
        "node": replica.facts.get("node"),
        "gpus": replica.facts.get("gpus", []),
        "state": replica.state,
        "ended_by": replica.ended_by[0] or None,
        "calls": replica.num_calls,
        "waiting_seconds": round((replica.placed or now) - replica.born, 3),
        "loading_seconds": round((replica.ready or now) - replica.placed, 3) if replica.placed else None,
        "ready_seconds": round(ready, 3),
        "busy_seconds": round(busy, 3) if math.isfinite(busy) else None,
        "utilisation": round(busy / ready, 4) if ready and math.isfinite(busy) else None,
        "stats": replica.stats,
    }


def note_engines(manifest: dict[str, Any], pool: Pool) -> bool:
    """List the engine fingerprints of a pool's actors that the manifest lacks; whether there were any.

    More than one: rows may differ in low bits.
    """
    before = list(manifest.get("engine", ()))
    listed = list(before)
    for replica in (*pool.gone, *pool.replicas):
        engine = as_json(replica.facts.get("engine"))
        if engine is not None and engine not in listed:
            listed.append(engine)
    manifest["engine"] = listed
    return listed != before
