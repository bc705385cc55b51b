"""The schema of `<out>/rows/*.parquet`: one row per prompt and method. Version 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = "1"
JUDGE_ERRORS = "judge_errors"  # in a row's `extra`: judge -> why it has no score of the response
NUM_TRUNCATED = "num_truncated"  # in a row's `extra`: responses scored with a prompt that the reward model had cut
NO_REASON = "the judge gave no reason"

TRACES = ("reward_mean", "reward_max", "reward_best", "ess", "control_norm")
_EXTRA = (
    "JSON of the method's own diagnostics, a list per name; judge_errors: judge -> why it has no score; num_truncated: "
    "responses scored with a prompt that the reward model had cut, where there are any"
)

ROW_SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), metadata={"doc": "one per started job"}),
        pa.field("config_hash", pa.string(), metadata={"doc": "fingerprint of everything that decides the numbers"}),
        pa.field("prompt_id", pa.string(), metadata={"doc": "<dataset>/<split>/<ordinal>"}),
        pa.field("ordinal", pa.int64(), metadata={"doc": "position in the input stream"}),
        pa.field("dataset", pa.string()),
        pa.field("method", pa.string(), metadata={"doc": "name of the preset in conf/method"}),
        pa.field("prompt", pa.string()),
        pa.field("response", pa.string(), metadata={"doc": "the selected response; null on error"}),
        pa.field("reward", pa.float64(), metadata={"doc": "of the selected response; null on error"}),
        pa.field("status", pa.string(), metadata={"doc": "ok | error"}),
        pa.field("error", pa.string(), metadata={"doc": "null when status is ok"}),
        pa.field("finish_reason", pa.string(), metadata={"doc": "stop | stop_string | length"}),
        pa.field("num_samples", pa.int64(), metadata={"doc": "responses drawn"}),
        pa.field("num_generated_tokens", pa.int64(), metadata={"doc": "over all responses, end tokens included"}),
        pa.field("num_prompt_tokens", pa.int64()),
        pa.field("num_reward_calls", pa.int64(), metadata={"doc": "responses sent to be scored"}),
        pa.field("num_failed_particles", pa.int64(), metadata={"doc": "responses without a finite reward"}),
        pa.field("policy_seconds", pa.float64(), metadata={"doc": "this prompt's share of policy time"}),
        pa.field("reward_seconds", pa.float64(), metadata={"doc": "this prompt's share of reward time"}),
        pa.field("wall_seconds", pa.float64(), metadata={"doc": "from its first proposal to its last reward"}),
        *[
            pa.field(name, pa.list_(pa.float64()), metadata={"doc": "one value per iteration; null where undefined"})
            for name in TRACES
        ],
        pa.field("num_samples_seen", pa.list_(pa.int64()), metadata={"doc": "samples drawn after each iteration"}),
        pa.field("judge_names", pa.list_(pa.string())),
        pa.field("judge_rewards", pa.list_(pa.float64()), metadata={"doc": "held-out scores of the response"}),
        pa.field("seed", pa.int64(), metadata={"doc": "the run's seed"}),
        pa.field("extra", pa.string(), metadata={"doc": _EXTRA}),
    ],
    metadata={"aisp_ray.schema": SCHEMA_VERSION},
)
# columns of what a search cost: whole numbers that are counted, and seconds
LEDGER = tuple(
    field.name
    for field in ROW_SCHEMA
    if field.name.endswith("_seconds") or (field.name.startswith("num_") and field.type == pa.int64())
)

PARTICLE_SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("ordinal", pa.int64()),
        pa.field("method", pa.string()),
        pa.field("iteration", pa.int64()),
        pa.field("particle", pa.int64()),
        pa.field("response", pa.string()),
        pa.field("reward", pa.float64()),
        pa.field("error", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("num_generated_tokens", pa.int64()),
        pa.field("logprob", pa.float64()),
    ],
    metadata={"aisp_ray.schema": SCHEMA_VERSION},
)


def null(value: Any) -> Any:
    """A value as rows and JSON hold it: what is not finite is null, also inside lists and tables."""
    if isinstance(value, Mapping):
        return {key: null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# what differs between two runs of one command: wall-clock and the run's own names
VOLATILE_COLUMNS = ("run_id", "policy_seconds", "reward_seconds", "wall_seconds")
