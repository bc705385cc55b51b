"""What a reader of the table must know before believing it, a sentence each."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aisp_ray.report.measure import Section
from aisp_ray.report.tables.cells import FEW, count
from aisp_ray.results import JUDGE_ERRORS

_CUT = 0.2  # share of responses cut by the length limit that is worth a word
_LOW_ESS = 1.5  # mean effective samples under which a mean follows its single best particle


def notices(sections: Sequence[Section], runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The sentences, most serious first: what the runs say of themselves, then what the rows show.

    runs: output -> {"manifest.json": ..., "summary.json": ...}.
    """
    found = [f"{out}: {text}" for out, run in runs.items() for text in run_notices(run)]
    for section in sections:
        place = f"{section.dataset}: " if len(sections) > 1 else ""
        found += [f"{place}{text}" for text in section_notices(section)]
    return list(dict.fromkeys(found))


def run_notices(run: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What an output's manifest and summary warn of."""
    manifest, summary = run.get("manifest.json") or {}, run.get("summary.json") or {}
    mixed = manifest.get("ignored_differences")
    if mixed:
        yield f"rows of different configurations are mixed in it (run.on_mismatch=ignore): {'; '.join(map(str, mixed))}"
    code, runs = summary.get("exit_code"), manifest.get("runs") or ()
    if runs and "/" in (runs[-1].get("shard") or ""):
        yield from _shard_notices(runs, summary)
    elif runs and summary.get("run_id") != runs[-1].get("run_id"):  # a run writes its summary when it ends
        yield "the run has not ended: it still runs, or it was killed and the same command resumes it"
    elif code not in (None, 0, 3):
        yield f"the run has not ended (exit code {code}); the same command resumes it"
    yield from run_warnings(summary)


def _shard_notices(runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Iterator[str]:
    """Shards of an output (`run.shard=i/k`) that have not ended, or ended before their work was done."""
    started = {record.get("shard"): record.get("run_id") for record in runs}  # the last start of each
    of = int(runs[-1]["shard"].rpartition("/")[2])
    ended = summary.get("shards") or {}
    for shard in (f"{number}/{of}" for number in range(1, of + 1)):
        there = ended.get(shard) or {}
        if there.get("run_id") != started.get(shard) or shard not in started:
            yield f"shard {shard} has not ended: run.shard={shard} still runs, was killed, or was never started"
        elif there.get("exit_code") not in (0, 3):
            yield f"shard {shard} has not ended (exit code {there.get('exit_code')}); the same command resumes it"


def run_warnings(summary: Mapping[str, Any]) -> Iterator[str]:
    """Every text under a key named `warnings`, wherever it is in a run's summary."""
    for key, value in summary.items():
        if key == "warnings":
            yield from map(str, value.values() if isinstance(value, Mapping) else _list(value))
        elif isinstance(value, Mapping):
            yield from run_warnings(value)


def _list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def section_notices(section: Section) -> Iterator[str]:
    records, columns = section.records, section.columns
    for record in records:
        if record.num_errors:
            errors = [
                error for label, error in zip(columns["label"], columns["error"], strict=True)
                if label == record.method and error
            ]  # fmt: skip
            yield f"{record.method}: {record.num_errors} of {record.num_rows} rows are errors; the first: {errors[0]}"
    sizes = {record.num_rows for record in records}
    if len(sizes) > 1:
        rows = ", ".join(f"{record.method} {record.num_rows}" for record in records)
        yield f"the methods have different numbers of rows ({rows}): an unfinished run, or outputs of different prompts"
    budgets = {record.method: record.num_samples for record in records if math.isfinite(record.num_samples)}
    if budgets and max(budgets.values()) > 1.01 * min(budgets.values()):
        listed = ", ".join(f"{method} {samples:,.0f}" for method, samples in budgets.items())
        yield f"the methods drew different numbers of samples per prompt ({listed}): not a comparison at equal budget"
    if section.baseline is None and len(records) > 1:
        yield f"the baseline {records[0].baseline} has no rows: nothing is compared with it"
    yield from _row_notices(section)
    yield from _judge_notices(section.columns)
    fewest = min(record.num_prompts for record in records)
    if fewest < FEW:
        yield f"{count(fewest, 'prompt')} only: below {FEW} the intervals are rough, and no difference is coloured"


def _judge_notices(columns: Mapping[str, Sequence]) -> Iterator[str]:
    """Judges that lack a score of a response. One that failed on all of them has no column in the table."""
    asked: Counter[str] = Counter()
    missing: dict[str, list[int]] = {}  # judge -> rows
    for i, status in enumerate(columns["status"]):
        scores = zip(columns["judge_names"][i] or (), columns["judge_rewards"][i] or (), strict=False)
        for judge, score in scores if status == "ok" else ():
            asked[judge] += 1
            if score is None or not math.isfinite(score):
                missing.setdefault(judge, []).append(i)
    for judge, rows in missing.items():
        extras = (json.loads(columns["extra"][i] or "{}") for i in rows)
        reasons = (error for extra in extras if (error := (extra.get(JUDGE_ERRORS) or {}).get(judge)))
        first = next((f"; the first: {error}" for error in reasons), "")
        yield f"judge {judge}: {len(rows):,} of {asked[judge]:,} responses have no score{first}"


def _row_notices(section: Section) -> Iterator[str]:
    columns = section.columns
    cut: list[str] = []  # one sentence for all methods: a limit that is too short cuts those of each
    for record in section.records:
        mine = [
            i for i, label in enumerate(columns["label"])
            if label == record.method and columns["status"][i] == "ok"
        ]  # fmt: skip
        share = sum(columns["finish_reason"][i] == "length" for i in mine) / max(len(mine), 1)
        if share > _CUT:
            cut.append(f"{share:.0%} of {record.method}")
        failed = sum(columns["num_failed_particles"][i] or 0 for i in mine)
        if failed:
            yield f"{record.method}: {failed:,} samples got no finite reward"
        curve = section.curves.get("ess", {}).get(record.method)
        if curve is not None and curve.known:
            values = [value.mean for value in curve.values if value.count]
            mean = sum(values) / len(values)
            if mean < _LOW_ESS and len(values) > 1:
                yield (
                    f"{record.method}: {mean:.2f} effective samples an iteration on average; the mean follows its "
                    "single best sample (a higher reward_temperature averages more)"
                )
    if cut:
        yield f"responses cut by the length limit: {', '.join(cut)}"
