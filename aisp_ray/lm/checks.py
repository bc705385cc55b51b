"""The check at load: numbers read behind a shared prefix against those of the model's own forward.

Attention that a model does differently (sinks, position biases, windows) shows here as a difference, and the model is
refused instead of being silently wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aisp_ray.lm.shims import attention_configs, attention_named
from aisp_ray.lm.support import UnsupportedModelError

LONGEST_WINDOW = 2048  # a longer window is not crossed: the check would take too long
# largest difference, as a part of the root mean square of the model's own numbers
TOLERANCE = {torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2.5e-1}


def probe(length: int, vocabulary: int) -> list[int]:
    """Some token ids, the same for everyone."""
    return [(7 * i * i + 13 * i + length) % vocabulary for i in range(length)]


def probe_lengths(windows: Sequence[int], longest: int) -> list[int]:
    """Lengths of two prompts to try, the second beyond the smallest window if that is short enough."""
    crosses = bool(windows) and min(windows) <= LONGEST_WINDOW
    return [5, min(min(windows) + 3, longest) if crosses else 9]


@torch.no_grad()
def own_states(body: Any, ids: Sequence[int]) -> Tensor:
    """Last hidden states of every position by the model's own eager attention, float32 [tokens, d] on the CPU."""
    with attention_named(attention_configs(body), "eager"):
        out = body(input_ids=torch.tensor([list(ids)], device=next(body.parameters()).device), use_cache=False)
    return out.last_hidden_state[0].float().cpu()


def require_equal(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> float:
    """Compare (numbers read behind a shared prefix, the model's own). Returns the largest relative difference.

    Raises:
        UnsupportedModelError: they differ by more than rounding.
    """
    differences = [float((found - own).abs().max() / own.square().mean().sqrt()) for found, own in pairs]
    worst = next((one for one in differences if one != one), max(differences))
    if not worst <= TOLERANCE[dtype]:
        raise UnsupportedModelError(
            f"its numbers behind a shared prefix differ from its own forward by {worst:.2g} of their size "
            f"(allowed: {TOLERANCE[dtype]:g})"
        )
    return worst
