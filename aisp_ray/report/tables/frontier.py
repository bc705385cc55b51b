"""Which methods buy reward without losing what the reward stands for: the reward-gold and the reward-KL frontier.

A method is on a frontier when no other one has both more reward and more of a held-out judge (or less divergence from
the policy). Means over prompts; near ties are ties, so the intervals stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aisp_ray.files import MANIFEST
from aisp_ray.metrics.base import Estimate
from aisp_ray.report.measure import Section
from aisp_ray.report.tables.cells import NONE, Column, Table, intervals, numbers, table_of, texts

_BEST_OF_N = "aisp_ray.methods.best_of_n.BestOfN"


def above(points: Sequence[tuple[float, float]], i: int) -> int | None:
    """Of the points that beat point i in one value and are not below it in the other, that of the highest second value.

    None: there is none, so i is on the frontier, or it lacks a value.
    """
    x, y = points[i]
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    better = [j for j, (a, b) in enumerate(points) if a >= x and b >= y and (a > x or b > y)]
    return max(better, key=lambda j: points[j][1], default=None)


def frontier_table(section: Section, runs: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Reward against every judge and against the divergence; None where there is neither, or one method.

    runs: output -> its manifest, for the divergence of best-of-n, log N - (N - 1) / N nats at most.
    """
    records = section.records
    judges = list(dict.fromkeys(name for record in records for name in record.judges))
    divergences = [_divergence(section, record.method, record.num_samples, runs) for record in records]
    rewards = [record.reward.mean for record in records]
    columns = [texts("method", section.labels), intervals("reward", [record.reward for record in records])]
    for judge in judges:
        values = [record.judges.get(judge, Estimate()) for record in records]
        columns.append(intervals(judge, values, group=judge))
        columns.append(_places(section.labels, list(zip(rewards, [v.mean for v in values], strict=True)), judge))
    if any(map(math.isfinite, divergences)):
        columns.append(numbers("KL, nats", divergences, ".2f", "KL"))
        columns.append(_places(section.labels, [(r, -kl) for r, kl in zip(rewards, divergences, strict=True)], "KL"))
    if len(records) < 2 or len(columns) < 3:
        return None
    note = (
        "frontier: no other method has both more reward and more of the judge (or less KL); else the one that has, by "
        "means over prompts. KL: recorded with diagnostics=true (kl_token_steered), for best-of-n the bound "
        "log N - (N - 1) / N to the policy at its own temperature."
    )
    return table_of("Frontiers", columns, note)


def _places(labels: Sequence[str], points: Sequence[tuple[float, float]], group: str) -> Column:
    cells = []
    for i, point in enumerate(points):
        over = above(points, i)
        on = "frontier" if all(map(math.isfinite, point)) else NONE
        cells.append(on if over is None else f"below {labels[over]}")
    return texts(f"{group} frontier", cells, group)


def _divergence(section: Section, label: str, num_samples: float, runs: Mapping[str, Mapping[str, Any]]) -> float:
    """KL of what a method returns from the policy, nats; NaN where it is not known."""
    recorded = section.last.get("kl_token_steered", {}).get(label, Estimate()).mean
    if math.isfinite(recorded):
        return recorded
    method, _ = section.settings.get(label, (label, {}))
    said = [run.get(MANIFEST, {}).get("fingerprint", {}).get("method", {}).get(method) for run in runs.values()]
    plain = [one for one in said if one]
    if plain and all(one.get("_target_") == _BEST_OF_N and one.get("select", "best") == "best" for one in plain):
        return math.log(num_samples) - (num_samples - 1) / num_samples
    return math.nan
