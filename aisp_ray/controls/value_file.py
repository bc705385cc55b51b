"""What a trained value function cost, read from its file's header: no torch, so that the driver can say it."""

from __future__ import annotations

import json
import math
import struct
from functools import lru_cache
from pathlib import Path

UNITS = ("num_samples", "num_generated_tokens", "num_reward_calls", "num_backward_passes")


def value_file(path: str) -> Path:
    """A file path; `demo:value` is the one that comes with the package."""
    if path.startswith("demo:"):
        name = path.removeprefix("demo:")
        return Path(__file__).parent.parent / "demo" / "models" / name / f"{name}.safetensors"
    return Path(path).expanduser()


@lru_cache(maxsize=16)
def training_cost(path: str) -> dict[str, float]:
    """By unit of `UNITS`; NaN where the file is not on this machine or does not say."""
    try:
        with value_file(path).open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))  # a safetensors file begins with its header's length
            facts = json.loads(json.loads(file.read(size))["__metadata__"]["value_function"])
        return {unit: float(facts["cost"][unit]) for unit in UNITS}
    except (OSError, ValueError, KeyError, struct.error):
        return dict.fromkeys(UNITS, math.nan)
