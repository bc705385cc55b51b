"""How much memory is free, and memory given back."""

from __future__ import annotations

import gc
import traceback

import torch

_CONTEXT_BYTES = 1 << 30  # of a process on a GPU: driver context, kernels, libraries
_share = 1.0  # see `share_gpu`
_cache_stays = False  # see `keep_cache`


def share_gpu(share: float) -> None:
    """Let this process take no more than this share of its GPU, whatever others leave free.

    What a process takes beside PyTorch's tensors (context, libraries) is a part of it, so that two halves fit.
    """
    global _share
    _share = max(share - _CONTEXT_BYTES / torch.cuda.mem_get_info()[1], share / 2)
    torch.cuda.set_per_process_memory_fraction(_share)


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on the device."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(min(int(free), int(_share * total) - torch.cuda.memory_reserved(device)), 0)
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The lack of memory that an exception is, or that led to it; None: another reason."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return error
        error = error.__cause__ or error.__context__
    return None


def keep_cache() -> None:
    """Never empty PyTorch's cache in this process again: before 2.12 that fails once a recording has failed."""
    global _cache_stays
    _cache_stays = True


def give_back(device: torch.device, error: BaseException | None = None) -> None:
    """Return memory that nothing holds to the device, and what only the frames of a handled error hold with it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    if device.type == "cuda" and not _cache_stays:
        torch.cuda.empty_cache()
