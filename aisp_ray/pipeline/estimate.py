"""What a plan will take, by a pilot or an earlier run on this disk: an interval of hours and money, or a rate."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aisp_ray.cluster.models import asks_of, choose_in_flight
from aisp_ray.files import MANIFEST, SUMMARY, Output, differences
from aisp_ray.pipeline.forecast import LEAST, Forecast, Interval, Machines, Measured, forecast
from aisp_ray.pipeline.meter import clock
from aisp_ray.plan import Plan

_LEAST_TOKENS = 1000  # a run of fewer was mostly loading
_WELL_FILLED = 0.6  # share of the policy's slots
_COLUMNS = ["ordinal", "policy_seconds", "reward_seconds", "num_generated_tokens", "num_reward_calls"]


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast an earlier run was, loading included."""

    tokens_per_second: float
    out: str  # of the run

    def says(self, tokens: int, what: str) -> str:
        """The time for at most so many tokens, in words. what: what they are for."""
        where = f"at {self.tokens_per_second:,.0f} tokens/s, the rate of {self.out}"
        return f"at most {clock(tokens / self.tokens_per_second)} {what}, {where}"


def earlier_rate(out: str, policy: Mapping[str, Any], reward: Mapping[str, Any]) -> Rate | None:
    """Of the newest run among `out` and the folders beside it whose policy and reward are these; None without one.

    policy, reward: as `plan.describe` gives them.
    """
    for place, _, summary in _runs_beside(out, {"policy": policy, "reward": reward}):
        rate, tokens = summary.get("tokens_per_second"), summary.get("generated_tokens", 0)
        if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0 and tokens >= _LEAST_TOKENS:
            return Rate(float(rate), place)
    return None


def _runs_beside(out: str, wanted: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(folder, manifest, summary) of runs whose fingerprint has the wanted parts: `out` first, then the newest."""
    if "://" in out:
        return
    folder = Path(out).expanduser()
    found = []
    for place in folder.parent.glob("*/") if folder.parent.is_dir() else ():
        try:
            manifest, summary = (json.loads((place / name).read_text("utf-8")) for name in (MANIFEST, SUMMARY))
            if not any(differences(manifest["fingerprint"].get(key), value) for key, value in wanted.items()):
                found.append((place == folder, (place / SUMMARY).stat().st_mtime, (str(place), manifest, summary)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no run, another kind, or one under way
            continue
    for _, _, run in sorted(found, key=lambda entry: entry[:2], reverse=True):
        yield run


# ---------------------------------------------------------------- an interval


def lines_of(plan: Plan) -> list[str]:
    """What the prompts that are left will take, in sentences; none where too little was measured.

    A run counts whose methods, policy, reward and data are those of the plan: one on `out` or in a folder beside it.
    """
    wanted = {name: _plain(plan.fingerprint.get(name)) for name in ("method", "policy", "reward", "data")}
    for place, _, summary in _runs_beside(plan.out, wanted):
        measured = measure(place, list(plan.methods), summary)
        if measured.num_prompts >= LEAST:
            return _sentences(plan, place, measured, _num_prompts(plan, summary))
    return []


def measure(out: str, methods: list[str], summary: Mapping[str, Any]) -> Measured:
    """What the prompts cost that have a row of every method there. summary: of the last run on it."""
    by_prompt: defaultdict[int, list[np.ndarray]] = defaultdict(list)
    output = Output(out)
    for method, chunk in output.parts():
        if method in methods:
            table = output.read_part(method, chunk, _COLUMNS)
            columns = [table[name].to_numpy(zero_copy_only=False) for name in _COLUMNS[1:]]
            for ordinal, *values in zip(table["ordinal"].to_pylist(), *columns, strict=True):
                by_prompt[ordinal].append(np.nan_to_num(np.asarray(values, dtype=np.float64)))  # null: an unusable row
    rows = [sum(values) for values in by_prompt.values() if len(values) == len(methods)]
    costs = np.asarray(rows, dtype=np.float64).reshape(len(rows), 4)  # [prompts, policy s, reward s, tokens, calls]
    seconds = {"policy": costs[:, 0], "reward": costs[:, 1]}
    actors = [actor for actor in summary.get("replicas", ()) if actor.get("ready_seconds")]
    num_rows = sum(tally.get("rows", 0) for tally in summary.get("methods", {}).values())
    num_rows -= summary.get("rows_of_earlier_runs", 0)
    for name in {actor["pool"] for actor in actors} - {*seconds}:  # rows hold no seconds of judges
        busy = sum(actor.get("busy_seconds") or 0.0 for actor in actors if actor["pool"] == name)
        seconds[name] = np.full(len(rows), busy * len(methods) / max(num_rows, 1))
    loading: dict[str, float] = {}
    for actor in actors:
        loading[actor["pool"]] = max(loading.get(actor["pool"], 0.0), actor.get("loading_seconds") or 0.0)
    steps, useful = (
        sum(actor["stats"].get(name, 0.0) for actor in actors if actor["pool"] == "policy")
        for name in ("row_steps", "useful_row_steps")
    )
    return Measured(seconds, costs[:, 2], costs[:, 3], useful / steps if useful else 1.0, loading)


def _num_prompts(plan: Plan, summary: Mapping[str, Any]) -> int | None:
    """Of the plan; None where neither the limit nor a run that read the data to its end says it."""
    data = summary.get("data") or {}
    there = data.get("num_prompts", 0) + data.get("num_errors", 0)
    if data.get("complete"):
        return there if plan.limit is None else min(plan.limit, there)
    return plan.limit


def _sentences(plan: Plan, place: str, measured: Measured, num_prompts: int | None) -> list[str]:
    done = measured.num_prompts if Path(place) == Path(plan.out) else 0
    left = 1000 if num_prompts is None else num_prompts - done
    head = f"by {measured.num_prompts} prompts of {place}, for "
    head += "every 1,000 prompts" if num_prompts is None else f"the {left:,} prompts that are left"
    if left < 1:
        return [f"all {done} prompts are done"]
    lines, seen = [head], set()
    for which, word in ((1, "at most"), (0, "at least")):
        machines = _machines(plan, which, measured)
        shown = ", ".join(f"{count} {name}" for name, count in machines.actors.items())
        if shown in seen:
            continue
        seen.add(shown)
        found = forecast(measured, machines, left)
        if not lines[1:]:
            lines.append(f"  tokens {_range(found.tokens)}, reward calls {_range(found.reward_calls)}")
        lines.append(f"  {_time_and_money(plan, found)}, with {word} the actors that are asked for ({shown})")
    if measured.fill < _WELL_FILLED:
        lines.append(f"  the policy's slots were filled to {measured.fill:.0%}; a larger pilot narrows the interval")
    return [*lines, "  not counted: waiting for machines, and work that is lost with them"]


def _machines(plan: Plan, which: int, measured: Measured) -> Machines:
    """which: 0 for the fewest actors of the plan, 1 for the most."""
    actors = {name: ask.actors[which] for name, ask in asks_of(plan).items() if name in measured.seconds}
    return Machines(actors, choose_in_flight(plan, actors["policy"]), len(plan.methods))


def _time_and_money(plan: Plan, found: Forecast) -> str:
    words = f"time {clock(found.seconds[0])} to {clock(found.seconds[1])}"
    if plan.run.price is None:
        return f"{words}; run.price=... says what it costs"
    low, high = found.cost(plan.run.price)
    return f"{words}, cost {low:,.2f} to {high:,.2f}"


def _range(ends: Interval) -> str:
    low, high = (f"{float(f'{end:.3g}'):,.0f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
