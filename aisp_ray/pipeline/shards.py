"""Several drivers on one output: `run.shard=i/k` runs every k-th chunk of prompts, and their summaries are one.

A part file belongs to one shard, so no two drivers write the same file. Each keeps a snapshot and a summary of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aisp_ray.errors import OK, SOME_ERRORS
from aisp_ray.files import STATE, SUMMARY, Output

_SNAPSHOT = "inflight"


@dataclass(frozen=True)
class RunShard:
    """Chunks `number`, `number + of` ... of the input. (0, 1) is all of it."""

    number: int = 0  # from 0
    of: int = 1

    @classmethod
    def read(cls, text: str | None) -> RunShard:
        """'2/4', as `RunSettings` has checked it; None: all."""
        if text is None:
            return cls()
        number, of = map(int, text.split("/"))
        return cls(number - 1, of)

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.of}"

    def owns(self, chunk: int) -> bool:
        return chunk % self.of == self.number

    def overlaps(self, other: RunShard) -> bool:
        """Whether some chunk belongs to both."""
        return (self.number - other.number) % math.gcd(self.of, other.of) == 0

    def count(self, num_prompts: int, chunk_rows: int) -> int:
        """How many of the first so many prompts are in it."""
        whole, rest = divmod(num_prompts, chunk_rows)
        return len(range(self.number, whole, self.of)) * chunk_rows + (rest if self.owns(whole) else 0)

    @property
    def snapshot(self) -> str:
        return f"{STATE}/{_SNAPSHOT}{self._suffix}.json"

    @property
    def summary(self) -> str:
        """The file of its own summary, which of an undivided run is everybody's."""
        return f"{STATE}/summary{self._suffix}.json" if self.of > 1 else SUMMARY

    @property
    def _suffix(self) -> str:
        return f"-{self.number + 1}-of-{self.of}" if self.of > 1 else ""


ALL = RunShard()


def snapshots_of(output: Output) -> dict[str, RunShard]:
    """The snapshots that there are, of whatever shards, by file name."""
    found = {}
    for name in output.names(STATE):
        stem = name.removeprefix(_SNAPSHOT).removesuffix(".json")
        if stem == name or not name.startswith(_SNAPSHOT) or not name.endswith(".json"):
            continue
        words = stem.strip("-").split("-of-")
        if stem == "":
            found[f"{STATE}/{name}"] = RunShard()
        elif len(words) == 2 and all(word.isdecimal() for word in words):
            found[f"{STATE}/{name}"] = RunShard(int(words[0]) - 1, int(words[1]))
    return found


def write_summary(output: Output, shard: RunShard, summary: Mapping[str, Any]) -> None:
    """Write a shard's summary, and `summary.json` of all shards that have one.

    Whoever comes last has seen every other's: the merged one is made again until nobody else has written meanwhile.
    """
    output.write_json(shard.summary, summary)
    if shard.of == 1:
        return
    written: dict[str, dict[str, Any]] = {}
    while (there := _summaries(output, shard.of)) != written:
        written = there
        output.write_json(SUMMARY, merged(written, shard.of))


def _summaries(output: Output, of: int) -> dict[str, dict[str, Any]]:
    shards = [RunShard(number, of) for number in range(of)]
    found = {str(shard): output.read_json(shard.summary) for shard in shards}
    return {name: summary for name, summary in found.items() if summary is not None}


def merged(parts: Mapping[str, Mapping[str, Any]], of: int) -> dict[str, Any]:
    """One summary of those of the shards, by shard. The exit code is the worst, null while one has not ended."""
    summaries = list(parts.values())
    total = {name: sum(part[name] for part in summaries) for name in ("iterations", "generated_tokens", "in_flight")}
    seconds = max(part["seconds"] for part in summaries)
    costs = [part["cost"] for part in summaries]
    return {
        "shards": {
            name: {key: part[key] for key in ("run_id", "exit_code", "seconds")} for name, part in parts.items()
        },
        "num_shards": of,
        "config_hash": summaries[0]["config_hash"],
        "exit_code": _worst([part["exit_code"] for part in summaries]) if len(summaries) == of else None,
        "seconds": seconds,
        "rows_of_earlier_runs": sum(part["rows_of_earlier_runs"] for part in summaries),
        **total,
        "tokens_per_second": round(total["generated_tokens"] / max(seconds, 1e-9), 3),
        "data": summaries[0]["data"],
        "actor_hours": _added(part["actor_hours"] for part in summaries),
        "cost": None if None in costs else sum(costs),
        "all_starts": max((part["all_starts"] for part in summaries), key=lambda spent: spent["seconds"]),
        "methods": _tallies([part["methods"] for part in summaries]),
        **{name: _events([part[name] for part in summaries]) for name in ("retries", "ended")},
        "replicas": [{**actor, "shard": name} for name, part in parts.items() for actor in part["replicas"]],
    }


def _worst(codes: list[int]) -> int:
    failed = [code for code in codes if code not in (OK, SOME_ERRORS)]
    return failed[0] if failed else max(codes)


def _added(counts: Any) -> dict[str, float]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _events(parts: list[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, float]]:
    return {
        pool: _added(part.get(pool, {}) for part in parts) for pool in dict.fromkeys(p for part in parts for p in part)
    }


def _tallies(parts: list[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    found = {}
    for method in dict.fromkeys(name for part in parts for name in part):
        mine = [part[method] for part in parts if method in part]
        ok = [(tally["rows"] - tally["errors"], tally["mean_reward"]) for tally in mine]
        count = sum(rows for rows, mean in ok if mean is not None)
        found[method] = {
            "rows": sum(tally["rows"] for tally in mine),
            "errors": sum(tally["errors"] for tally in mine),
            "mean_reward": sum(rows * mean for rows, mean in ok if mean is not None) / count if count else None,
        }
    return found
