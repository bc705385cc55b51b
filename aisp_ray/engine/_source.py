"""What an engine offers to rebuild a mean: noise by name, teacher-forced pre-logits, the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aisp_ray.lm.head import Head
from aisp_ray.noise import normal, split_key


class Source:
    """`controls.MeanSource` of one prompt on one device."""

    def __init__(self, key: int, head: Head, device: Any, replay: Callable[[Sequence[Sequence[int]]], list[Tensor]]):
        self.dim = head.dim
        self.device = device
        self.head = head
        self.replay = replay
        self._key = key

    def noise(self, iteration: int, particles: Sequence[int], horizon: int) -> Tensor:
        count = len(particles)
        key = split_key([self._key], self.device).expand(count * horizon, 2)
        at = torch.full((count * horizon,), iteration, dtype=torch.int64, device=self.device)
        who = torch.tensor(list(particles), dtype=torch.int64, device=self.device).repeat_interleave(horizon)
        step = torch.arange(horizon, device=self.device).repeat(count)
        return normal(key, at, who, step, self.dim).view(count, horizon, self.dim)  # [n, t, d]

    def head_weight(self) -> Tensor:
        return self.head.weight
