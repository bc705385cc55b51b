"""Pre-logits of given responses by teacher forcing, going on from a shared prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aisp_ray.lm.prefixes import Prefix

_MOST_TOKENS = 8192  # of one forward


@torch.no_grad()
def teacher_force(
    body: Any, continued: Callable[[Prefix, int], Any], prefix: Prefix, responses: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Base pre-logits that each token of the responses was picked from, float32 [num_tokens, d] each.

    Responses are padded on the right, which a causal model does not see.
    """
    found: list[Tensor] = []
    longest = max((len(ids) for ids in responses), default=0)
    size = max(_MOST_TOKENS // max(longest + prefix.length, 1), 1)
    for start in range(0, len(responses), size):
        found += _chunk(body, continued, prefix, [list(ids) for ids in responses[start : start + size]])
    return found


def _chunk(
    body: Any, continued: Callable[[Prefix, int], Any], prefix: Prefix, responses: list[list[int]]
) -> list[Tensor]:
    first = prefix.hidden.float()[None]  # [1, d]
    width = max(len(ids) for ids in responses) - 1
    if width < 1:
        return [first[: len(ids)] for ids in responses]
    given = [ids[:-1] + [0] * (width - max(len(ids) - 1, 0)) for ids in responses]
    device = prefix.hidden.device
    position = torch.arange(prefix.length, prefix.length + width, device=device).expand(len(responses), width)
    out = body(
        input_ids=torch.tensor(given, device=device),
        position_ids=position,
        past_key_values=continued(prefix, len(responses)),
        use_cache=True,
    )
    hidden = out.last_hidden_state.float()  # [rows, width, d]
    return [torch.cat([first, hidden[i, : len(ids) - 1]])[: len(ids)] for i, ids in enumerate(responses)]
