"""How much memory is free, and memory given back."""

from __future__ import annotations

import gc
import traceback

import torch


def free_bytes(device: torch.device) -> int:
    """Memory free on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def give_back(device: torch.device, error: BaseException | None = None) -> None:
    """Return memory that nothing holds to the device, and what only the frames of a handled error hold with it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
