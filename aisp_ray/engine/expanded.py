"""The fallback for models whose cache cannot be shared: the prompt is still read once, its cache copied to every row.

Public transformers calls only, so it runs whatever `generate` runs. One request at a time, rows to the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from aisp_ray.engine.memory import choose_prefix_bytes
from aisp_ray.engine.plain import PlainEngine
from aisp_ray.lm.prefixes import Prefix, PrefixStore, bytes_of, read_cache


class ExpandedEngine(PlainEngine):
    """`engine.base.Engine` on expanded caches, with the prompts' caches kept between requests."""

    def __init__(
        self, model: Any, decode: Callable[[Sequence[int]], str] | None = None, prefix_bytes: int | None = None
    ):
        super().__init__(model, decode)
        self.fingerprint = {**self.fingerprint, "engine": "expanded"}
        self.store = PrefixStore(self._read, prefix_bytes or choose_prefix_bytes(model.device))

    def _read(self, ids: Sequence[int]) -> Prefix:
        cache, hidden = read_cache(self.model.base_model, ids, self.model.device)
        return Prefix(tuple(ids), cache, [], [], [], hidden, bytes_of(cache) + hidden.nbytes)

    def _prefill(self, prompt_ids: tuple[int, ...]) -> tuple[Any, Tensor, bool]:
        prefix, hit = self.store.acquire(prompt_ids)
        self.store.release(prefix)
        return copy.deepcopy(prefix.cache), prefix.hidden[None], hit

    def stats(self) -> dict[str, float]:
        return {
            **super().stats(),
            "prefix_hits": float(self.store.hits),
            "prefix_misses": float(self.store.misses),
            "prefix_bytes": float(self.store.num_bytes),
        }
