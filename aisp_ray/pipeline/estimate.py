"""How long a plan may take, by the rate of an earlier run with the same policy and reward on this disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aisp_ray.pipeline.manifest import MANIFEST, SUMMARY
from aisp_ray.pipeline.meter import clock

_LEAST_TOKENS = 1000  # a run of fewer was mostly loading


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast an earlier run was, loading included."""

    tokens_per_second: float
    out: str  # of the run

    def says(self, tokens: int, num_prompts: int) -> str:
        """The time for at most so many tokens, in words."""
        what = "for a prompt" if num_prompts == 1 else f"for {num_prompts:,} prompts"
        where = f"at {self.tokens_per_second:,.0f} tokens/s, the rate of {self.out}"
        return f"at most {clock(tokens / self.tokens_per_second)} {what}, {where}"


def earlier_rate(out: str, policy: Mapping[str, Any], reward: Mapping[str, Any]) -> Rate | None:
    """Of the newest run among `out` and the folders beside it whose policy and reward are these; None without one.

    policy, reward: as `plan.describe` gives them.
    """
    if "://" in out:
        return None
    folder = Path(out).expanduser()
    found: list[tuple[float, Rate]] = []
    for place in folder.parent.glob("*/") if folder.parent.is_dir() else ():
        try:
            manifest, summary = (json.loads((place / name).read_text("utf-8")) for name in (MANIFEST, SUMMARY))
            same = (manifest["fingerprint"]["policy"], manifest["fingerprint"]["reward"]) == (policy, reward)
            rate, tokens = float(summary["tokens_per_second"]), summary["generated_tokens"]
            if same and tokens >= _LEAST_TOKENS and math.isfinite(rate) and rate > 0:
                found.append(((place / SUMMARY).stat().st_mtime, Rate(rate, str(place))))
        except (OSError, ValueError, KeyError, TypeError):  # no run, another kind of output, or one under way
            continue
    return max(found, key=lambda pair: pair[0])[1] if found else None
