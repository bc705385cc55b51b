"""What the browser of prompts reads: the rows as gzipped JSON inside the page."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from aisp_ray.metrics.paired import TIE
from aisp_ray.report.figures.draw import COLOURS
from aisp_ray.report.measure import Section

MAX_PROMPTS = 20_000  # prompts in the page's browser; the table is of all
_TRACES = {"best": "reward_best", "mean": "reward_mean", "max": "reward_max", "ess": "ess", "norm": "control_norm"}


def prompts_of(section: Section) -> dict[tuple[str, str], list[int]]:
    """(prompt id, prompt) -> its rows' positions, in input order."""
    columns = section.columns
    found: dict[tuple[str, str], list[int]] = {}
    order = sorted(range(len(columns["prompt_id"])), key=lambda i: (columns["ordinal"][i] or 0, i))
    for i in order:
        found.setdefault((str(columns["prompt_id"][i]), columns["prompt"][i] or ""), []).append(i)
    return found


def payload(sections: Sequence[Section]) -> dict[str, Any]:
    """Everything the browser shows, as JSON values; missing numbers are null."""
    labels = [(number, label) for number, section in enumerate(sections) for label in section.labels]
    judges = list(dict.fromkeys(name for section in sections for record in section.records for name in record.judges))
    bases = [
        labels.index((number, section.baseline)) if section.baseline is not None else None
        for number, section in enumerate(sections)
    ]
    prompts: list[dict[str, Any]] = []
    for number, section in enumerate(sections):
        place = {label: at for at, (own, label) in enumerate(labels) if own == number}
        for (prompt_id, text), rows in prompts_of(section).items():
            if len(prompts) == MAX_PROMPTS:
                break
            shown = [_row(section.columns, i, place, judges) for i in rows]
            shown.sort(key=lambda row: (row["label"], row["seed"] or 0))
            entry = {"id": prompt_id, "prompt": text, "dataset": number, "order": len(prompts), "rows": shown}
            prompts.append(entry)
    names = [label if len(sections) == 1 else f"{label} ({sections[number].dataset})" for number, label in labels]
    colours = [COLOURS[sections[number].labels.index(label) % len(COLOURS)] for number, label in labels]
    shared = {"labels": names, "colours": colours, "baselines": bases, "judges": judges, "tie": TIE}
    return {**shared, "prompts": prompts}


def _row(columns: Mapping[str, Sequence], i: int, place: Mapping[str, int], judges: Sequence[str]) -> dict[str, Any]:
    judged = dict(zip(columns["judge_names"][i] or (), columns["judge_rewards"][i] or (), strict=False))
    return {
        "label": place[columns["label"][i]],
        "seed": columns["seed"][i],
        "reward": _short(columns["reward"][i]),
        "response": columns["response"][i],
        "error": None if columns["status"][i] == "ok" else columns["error"][i] or "error",
        "finish": columns["finish_reason"][i],
        "samples": columns["num_samples"][i],
        "tokens": columns["num_generated_tokens"][i],
        "failed": columns["num_failed_particles"][i],
        "judges": [_short(judged.get(name)) for name in judges],
        "seen": columns["num_samples_seen"][i] or [],
        **{key: [_short(value) for value in columns[name][i] or ()] for key, name in _TRACES.items()},
    }


def _short(value: float | None) -> float | None:
    """Five significant digits: enough to read, and half of the page's size."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def packed(value: Any) -> str:
    """JSON, gzipped, in base64: what `load` in page.js unpacks. The same bytes for the same value."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")
