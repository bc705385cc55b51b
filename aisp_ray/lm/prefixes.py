"""The prefix store: a prompt is read once, alone, and its keys and values serve all particles and iterations.

The engine decodes behind its `Prefix`; neural rewards read behind entries of their own, in the same store.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aisp_ray.lm.shims import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer
from aisp_ray.lm.snapshots import Snapshot, Snapshots
from aisp_ray.lm.support import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """What one layer caches. Attention: `num_heads` key-value heads of width `key_dim` / `value_dim`; else states."""

    num_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    window: int | None  # None: full attention

    @property
    def token_bytes(self) -> int:
        return self.num_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class Prefix:
    """A prompt's cache. A windowed layer holds only the last keys: `starts` is the position of its first one."""

    ids: tuple[int, ...]
    cache: Any  # the model's own cache of one row; `keys` and `values` are its tensors
    keys: list[Tensor | None]  # per layer [1, heads, kept, key_dim], None for a layer of states
    values: list[Tensor | None]
    starts: list[int]
    hidden: Tensor  # [d] pre-logits at the last prompt token: position 0 needs no forward
    own_bytes: int
    users: int = 0
    snapshots: Snapshots = field(default_factory=Snapshots)  # of rows that continued it

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        return self.own_bytes + self.snapshots.num_bytes

    def shed(self) -> int:
        """Drop the oldest snapshot; returns the bytes that are free then, 0 where there is none."""
        return self.snapshots.drop_oldest() if len(self.snapshots) else 0


@torch.no_grad()
def read_cache(body: Callable[..., Any], ids: Sequence[int], device: torch.device) -> tuple[Any, Tensor]:
    """Read a prompt in one forward of one unpadded row, so its numbers depend on nothing else.

    Returns the model's own cache of one row and the pre-logits [d] at the last token.
    """
    out = body(input_ids=torch.tensor([list(ids)], device=device), use_cache=True)
    return out.past_key_values, out.last_hidden_state[0, -1].clone()


def bytes_of(cache: Any) -> int:
    """Bytes of every tensor that the cache's layers hold."""
    held = [value for layer in cache.layers for value in vars(layer).values()]
    held += [value for group in held if isinstance(group, dict) for value in group.values()]
    return sum(value.nbytes for value in held if isinstance(value, Tensor))


def prefill(body: Callable[..., Any], ids: Sequence[int], device: torch.device) -> Prefix:
    """Read a prompt and take its cache apart."""
    cache, hidden = read_cache(body, ids, device)
    keys: list[Tensor | None] = []
    values: list[Tensor | None] = []
    starts = []
    for layer in cache.layers:
        if getattr(layer, "keys", None) is None:
            keys.append(None)
            values.append(None)
            starts.append(0)
            continue
        # a windowed layer keeps a view of the whole prompt: the copy lets the rest go
        layer.keys, layer.values = layer.keys.contiguous(), layer.values.contiguous()
        if layer.keys.untyped_storage().nbytes() > layer.keys.nbytes:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        keys.append(layer.keys)
        values.append(layer.values)
        starts.append(len(ids) - layer.keys.shape[-2])
    return Prefix(tuple(ids), cache, keys, values, starts, hidden, bytes_of(cache) + hidden.nbytes)


def states_of(layer: LinearAttentionLayer) -> list[Tensor]:
    """The convolution and recurrent states of a layer, in a fixed order."""
    states = [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return [state for state in states if state is not None]


def layouts_of(prefix: Prefix) -> list[LayerLayout | None]:
    """Per layer its layout, None for a layer of states.

    Raises:
        UnsupportedModelError: a layer caches in a way that cannot be split into prefix and suffix.
    """
    layouts: list[LayerLayout | None] = []
    for index, layer in enumerate(prefix.cache.layers):
        if type(layer) is LinearAttentionLayer:
            layouts.append(None)
            continue
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnsupportedModelError(f"layer {index} caches as {type(layer).__name__}")
        key, value = layer.keys, layer.values
        window = layer.sliding_window if type(layer) is DynamicSlidingWindowLayer else None
        layouts.append(LayerLayout(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device, window))
    return layouts


def continued(prefix: Prefix, num_rows: int) -> Any:
    """A copy of the model's own cache for `num_rows` rows that continue the prompt."""
    cache = copy.deepcopy(prefix.cache)
    cache.reorder_cache(torch.zeros(num_rows, dtype=torch.int64, device=prefix.hidden.device))
    return cache


@dataclass(slots=True)
class PrefixStore:
    """What was read of prompts, by key. Above `limit_bytes` the least recently used entries go, of those in use only
    what they can shed.

    read: makes the entry of a key: an object with `users`, `num_bytes` and `shed()`, as `Prefix` has them.
    """

    read: Callable[[Any], Any]
    limit_bytes: int
    hits: int = 0
    misses: int = 0
    _held: OrderedDict[Any, Any] = field(default_factory=OrderedDict)

    def acquire(self, key: Sequence[int]) -> tuple[Any, bool]:
        """The entry of these token ids and whether it was there. Pair with `release`."""
        key = tuple(key)
        entry = self.find(key)
        hit = entry is not None
        self.hits += hit
        self.misses += not hit
        if entry is None:
            entry = self._held[key] = self.read(key)
        entry.users += 1
        self.trim()
        return entry, hit

    def release(self, entry: Any) -> None:
        entry.users -= 1

    def find(self, key: Any) -> Any | None:
        """The entry of a key, which counts as used now; None where there is none."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Any, entry: Any) -> None:
        self._held[key] = entry

    def drop(self, key: Any) -> None:
        self._held.pop(key, None)

    def trim(self, limit_bytes: int | None = None) -> None:
        """Drop unused entries, oldest first, then what the others can shed, until at most `limit_bytes` are held."""
        limit = self.limit_bytes if limit_bytes is None else limit_bytes
        held = self.num_bytes
        for key in [key for key, entry in self._held.items() if entry.users == 0]:
            if held <= limit:
                return
            held -= self._held.pop(key).num_bytes
        for entry in self._held.values():
            while held > limit and (freed := entry.shed()):
                held -= freed

    def keep(self, prefix: Prefix, snapshot: Snapshot) -> None:
        """Keep a snapshot beside its prefix, if there is room or others can go for it."""
        prefix.snapshots.keep(snapshot)
        self.trim()

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._held.values())

    def __len__(self) -> int:
        return len(self._held)
