"""How many slots fit, from free memory; and memory given back."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Sequence

import torch

from aisp_ray.engine.prefixparts import LANE, stacked_tokens
from aisp_ray.lm.head import Head
from aisp_ray.lm.prefixes import LayerLayout

log = logging.getLogger(__name__)
_MOST_SLOTS = {"cpu": 128, "cuda": 1024}


def row_bytes(layouts: Sequence[LayerLayout | None], length: int, head: Head, ring: int, capacity: int = 0) -> int:
    """Bytes that one slot takes: suffix keys and values, its part of the stacked prompts (`capacity` tokens each, two
    lanes for `LANE` slots), controls drawn ahead, logits and what is computed on them."""
    caches = [layout for layout in layouts if layout is not None]
    suffix = sum(layout.token_bytes for layout in caches) * length
    stacked = sum(layout.token_bytes * stacked_tokens(layout, capacity) for layout in caches) * 2 // LANE
    return suffix + stacked + (ring + 2) * head.dim * 4 + 6 * head.weight.shape[0] * 4


def free_bytes(device: torch.device) -> int:
    """Memory free on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def choose_prefix_bytes(device: torch.device) -> int:
    """A fifth of the free memory for prompts."""
    return free_bytes(device) // 5


def choose_slots(slots: int | str | None, per_row: int, device: torch.device) -> int:
    """`slots` as a number; "auto" (or None) is the largest power of two that takes at most half of the free memory."""
    if isinstance(slots, int) and not isinstance(slots, bool):
        if slots < 1:
            raise ValueError(f"slots is {slots}; decode at least 1 row at once, or give auto")
        return slots
    if slots not in ("auto", None):
        raise ValueError(f"slots is {slots!r}; it is a number of rows or auto")
    most = _MOST_SLOTS.get(device.type, 256)
    chosen = 1
    while chosen * 2 <= most and chosen * 2 * per_row <= free_bytes(device) // 2:
        chosen *= 2
    log.info("engine: %d slots, %.1f MiB each", chosen, per_row / 2**20)
    return chosen


def give_back(device: torch.device, error: BaseException | None = None) -> None:
    """Return memory that nothing holds to the device, and what only the frames of a handled error hold with it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
