"""What a search is, once its configuration has been read and checked. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aisp_ray.plan import RunSettings, draws_of
from aisp_ray.tune.search import Rules
from aisp_ray.tune.space import Workbench


@dataclass(frozen=True)
class TunePlan:
    """Everything a search needs."""

    name: str  # of the space, as in conf/tune
    workbench: Workbench
    policy: Any  # policy.base.PolicySpec
    reward: Any  # rewards.base.RewardSpec
    judges: Mapping[str, Any]  # name -> rewards.base.RewardSpec
    data: Any  # data.base.DataSpec: tuning prompts
    heldout: Any  # data.base.DataSpec; None: the prompts of data after the tuning prompts
    run: RunSettings
    local: bool  # models in this process instead of Ray actors
    seed: int
    out: str
    search: str  # tpe | random | grid | one_at_a_time
    trials: int | None  # settings besides the preset; None: all of the sweep
    rules: Rules
    heldout_limit: int
    objective: str
    save_as: str | None
    report: bool = True  # write <out>/report/ at the end
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved, JSON values
    fingerprint: Mapping[str, Any] = field(default_factory=dict)  # what decides an evaluation besides its setting

    @property
    def num_draws(self) -> int:
        return draws_of(self.workbench.make({}))
