"""The chosen setting once more, on prompts that no trial saw: how much of its gain was luck."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from aisp_ray.methods.base import Method
from aisp_ray.metrics.base import Estimate, estimate
from aisp_ray.results import null
from aisp_ray.tune.space import Workbench, text_of
from aisp_ray.tune.trial import Trial
from aisp_ray.types import Prompt

MARK = "chosen by a search"  # in the first line of a written preset: such a file may be written again


@dataclass(frozen=True)
class Confirmation:
    """The preset and the best trial on one set of prompts."""

    preset: Estimate
    best: Estimate
    gain: Estimate  # paired, best minus preset

    @property
    def as_json(self) -> dict[str, Any]:
        return null(dataclasses.asdict(self))


def confirm(preset: Trial, best: Trial) -> Confirmation:
    """From the values of both on the same prompts."""
    first, second = (estimate(np.asarray(trial.values, dtype=np.float64)) for trial in (preset, best))
    return Confirmation(first, second, estimate(best.paired(preset)))


def read_confirmation(values: Mapping[str, Mapping[str, Any]]) -> Confirmation:
    """What `as_json` gave, again; null is NaN."""

    def read(value: Mapping[str, Any]) -> Estimate:
        known: dict[str, Any] = {name: math.nan if x is None else x for name, x in value.items()}
        return Estimate(**known)

    return Confirmation(*(read(values[name]) for name in ("preset", "best", "gain")))


def disjoint(prompts: Sequence[Prompt], tuning: Sequence[Prompt]) -> list[Prompt]:
    """The prompts whose text no tuning prompt has."""
    seen = {prompt.text for prompt in tuning}
    return [prompt for prompt in prompts if prompt.text not in seen]


def verdict(tuning: Confirmation, heldout: Confirmation) -> str:
    """One sentence: what of the gain is left where nothing was chosen."""
    if tuning.gain.low == tuning.gain.high == 0:
        return "No setting did better than the preset."
    if not math.isfinite(heldout.gain.mean):
        return "There is no gain to confirm on held-out prompts."
    if heldout.gain.low > 0:
        held = "The gain holds on held-out prompts"
    elif heldout.gain.high < 0:
        held = "The choice is worse than the preset on held-out prompts"
    else:
        held = "On held-out prompts the gain cannot be told from none"
    luck = tuning.gain.mean - heldout.gain.mean
    return f"{held}; gain on tuning minus on held-out prompts (luck of the choice): {luck:+.3f}."


def preset_yaml(workbench: Workbench, method: Method, trial: Trial, found: str) -> str:
    """The setting as a file of conf/method."""
    keys = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    kept = [key for key in (*workbench.preset, *trial.settings, "n", "kappa") if key in keys]
    values: dict[str, Any] = {"_target_": workbench.preset["_target_"]}
    values |= {key: _plain(getattr(method, key)) for key in kept}
    head = f"# {workbench.space.method} with {text_of(trial.settings)}, {MARK}: {found}"
    return f"{head}\n{yaml.safe_dump(values, sort_keys=False)}"


def summary(tuning: Confirmation, heldout: Confirmation | None, best: Trial, cost: Mapping[str, Any]) -> dict[str, Any]:
    """`summary.json`."""
    return {
        "best": {"trial": best.number, "settings": dict(best.settings)},
        "tuning": tuning.as_json,
        "heldout": heldout.as_json if heldout else None,
        "cost": dict(cost),
    }


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
