"""What a run is, once its configuration has been read and checked. No torch, no Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aisp_ray.errors import redacted_values, require_one_of
from aisp_ray.types import Placement

# where models run does not change what they say
_PLACEMENT = {field.name for field in dataclasses.fields(Placement)} - {"threads"}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is carried out. None of these keys changes a number in the rows."""

    in_flight: int | None = None  # searches (prompts x methods) in flight; null chooses from slots and actors
    chunk_rows: int = 32  # prompts per Parquet file
    flush_seconds: float = 60.0  # a finished row is in its file after at most this long, complete or not
    shard: str | None = None  # i/k: every k-th chunk from the i-th on; k commands, 1/k to k/k, share one output
    particles: bool = False  # also write every particle to <out>/particles/
    on_mismatch: str = "refuse"  # refuse | overwrite | ignore: what to do if <out> holds rows of another configuration
    retry_errors: bool = False  # redo the rows whose status is error
    snapshot_seconds: float = 30.0  # how often the searches in flight are saved to <out>/_state/inflight.json
    max_hours: float | None = None  # stop this start after so long, with a snapshot and exit code 75; null: no limit
    max_cost: float | None = None  # the same once all starts on this output have cost so much; needs price
    price: dict[str, float] | None = None  # of an actor hour, {policy: 2.1, reward: 1.2, judges: 0.5}, any currency
    progress_seconds: float = 15.0  # one progress line this often in a log; a terminal gets a live line
    json_logs: bool = False  # log lines as JSON with prompt and iteration ids
    address: str | None = None  # null joins RAY_ADDRESS or this machine's `ray start`, else starts one, as local does
    ready_timeout_seconds: float = 900.0  # wait this long for the minimum of actors to load
    call_timeout_seconds: float = 1800.0  # an actor whose call takes longer counts as hung and is replaced
    starvation_timeout_seconds: float = 1800.0  # a pool empty for this long ends the run with exit code 75
    infra_retries: int = 5  # how often one call is sent to another actor after crashes, hangs and lost nodes

    def __post_init__(self) -> None:
        require_one_of("on_mismatch", self.on_mismatch, ("refuse", "overwrite", "ignore"))
        seconds = [name for name in vars(self) if name.endswith("_seconds")]
        for name in ("chunk_rows", *seconds):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("max_hours", "max_cost"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0, or null for no limit")
        self._check_price()
        words = ("" if self.shard is None else self.shard).split("/")
        whole = len(words) == 2 and all(word.isdecimal() for word in words)
        if self.shard is not None and not (whole and 1 <= int(words[0]) <= int(words[1])):
            raise ValueError(f"shard is {self.shard!r}; it is i/k with 1 <= i <= k, such as 1/2 and 2/2")
        if self.infra_retries < 0:
            raise ValueError(f"infra_retries is {self.infra_retries}; it must be at least 0")
        if self.in_flight is not None and self.in_flight < 1:
            raise ValueError(f"in_flight is {self.in_flight}; give at least 1, or null to have it chosen")

    def _check_price(self) -> None:
        if self.price is None:
            if self.max_cost is not None:
                raise ValueError("max_cost has no effect without price; give price={policy: 2.1, reward: 1.2} too")
            return
        for role, value in self.price.items():
            if role not in ("policy", "reward", "judges"):
                raise ValueError(f"price has {role!r}; its keys are policy, reward and judges (one price for all)")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"price of {role} is {value!r}; give a number per actor hour, at least 0")


@dataclass(frozen=True)
class Plan:
    """Everything a run needs. `fingerprint` holds what decides the numbers; two plans with one hash give equal rows."""

    methods: Mapping[str, Any]  # name -> methods.base.Method
    policy: Any  # policy.base.PolicySpec
    reward: Any  # rewards.base.RewardSpec
    judges: Mapping[str, Any]  # name -> rewards.base.RewardSpec
    data: Any  # data.base.DataSpec
    run: RunSettings
    seed: int
    limit: int | None
    out: str
    total: int | None = None  # samples over all prompts, for each method; None: what each method plans
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved, JSON values
    fingerprint: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = ["policy", "reward", *(["judges"] if self.judges else [])]
        lacking = [role for role in asked if self.run.price is not None and role not in self.run.price]
        if lacking:
            raise ValueError(f"run.price has no {lacking[0]}; give its price too, 0 where its actors cost nothing")
        if self.total is not None and self.run.shard is not None:
            raise ValueError("run.shard and budget=total exclude each other: one driver shares out the budget")

    @property
    def local(self) -> bool:
        return False  # Ray Data reads and writes the rows

    @property
    def num_draws(self) -> int:
        return min(draws_of(method) for method in self.methods.values())

    @property
    def config_hash(self) -> str:
        text = json.dumps(redacted_values(self.fingerprint), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def draws_of(method: Any) -> int:
    """Responses that one search of a method draws at once."""
    return max(1, method.num_samples // method.num_iterations)


def in_ray_job() -> bool:
    """Whether `ray job submit` started this process: its working folder is then a throw-away copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def absolute(out: str) -> str:
    """`out` as an absolute path; a URI stays, and so does a relative path in a Ray job, which is refused later."""
    return out if "://" in out or in_ray_job() else str(Path(out).expanduser().resolve())


def describe(settings: Any) -> dict[str, Any]:
    """A settings object as JSON values without the keys that only say where it runs."""
    values = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in _PLACEMENT
    }
    return {"_target_": f"{type(settings).__module__}.{type(settings).__qualname__}", **_jsonable(values)}


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return describe(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
