"""Means on the policy's device: rebuilt from their description, kept, the oldest dropped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import MeanSource
from aisp_ray.engine.draws import named_noise
from aisp_ray.engine.rows import Active
from aisp_ray.lm.head import Head
from aisp_ray.lm.prefixes import Prefix
from aisp_ray.noise import split_key

_MOST_TOKENS = 8192  # of one forward
_MOST_MEANS = 256


class Means:
    """Means by (prompt, description, horizon), continued from the cached parent, rebuilt where there is none.

    limit_bytes: what they may take; the last one stays whatever it takes.
    """

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[Any, Tensor] = OrderedDict()
        self.updates = 0  # iterations replayed, 1 for each request where nothing was lost

    def get(self, active: Active, source: Callable[[], MeanSource]) -> Tensor | None:
        """U of the request's control, float32 [horizon, d], or None."""
        control = active.request.proposal.control
        if not isinstance(control, OpenLoop) or control.mean is None or control.reach == 0:
            return None
        request = active.request
        prompt = (request.key, request.prompt_ids, control.reach)
        chain: list[Any] = []  # descriptions to go through, the newest first
        spec = control.mean
        while (mean := self._held.get((prompt, spec))) is None:
            chain.append(spec)
            parent = spec.parent()
            if parent is None:
                mean = chain.pop().fold(source(), control.reach)
                self._keep((prompt, spec), mean)
                break
            spec = parent
        for spec in reversed(chain):
            self.updates += 1
            mean = spec.advance(mean, source(), control.reach)
            self._keep((prompt, spec), mean)
        self._held.move_to_end((prompt, control.mean))
        return mean

    def _keep(self, name: Any, mean: Tensor) -> None:
        self._held[name] = mean
        while len(self._held) > 1 and (len(self._held) > _MOST_MEANS or self.num_bytes > self._limit_bytes):
            self._held.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        return sum(mean.nbytes for mean in self._held.values())


class Source:
    """`controls.MeanSource` of one prompt on one device."""

    def __init__(self, key: int, head: Head, device: Any, replay: Callable[[Sequence[Sequence[int]]], list[Tensor]]):
        self.dim = head.dim
        self.device = device
        self.head = head
        self.replay = replay
        self._key = key

    def noise(self, iteration: int, particles: Sequence[int], horizon: int, start: int = 0) -> Tensor:
        count, width = len(particles), horizon - start
        key = split_key([self._key], self.device).expand(count * width, 2)
        at = torch.full((count * width,), iteration, dtype=torch.int64, device=self.device)
        who = torch.tensor(list(particles), dtype=torch.int64, device=self.device).repeat_interleave(width)
        step = torch.arange(start, horizon, device=self.device).repeat(count)
        return named_noise((key, at, who, step), self.dim).view(count, width, self.dim)  # [n, t, d]

    def head_weight(self) -> Tensor:
        return self.head.weight


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
