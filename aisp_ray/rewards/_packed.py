"""Shared-prefix scoring: the prompt is read once and kept, only response tokens run, and no padding is computed.

The response tokens of a batch are laid end to end as one sequence [1, N]. Everything in a decoder but attention works
on single tokens, so the model runs unmodified; attention is ours, registered with transformers: a token sees the kept
keys of its prompt and the tokens of its own response before it. One softmax over both, merged by log-sum-exps.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from aisp_ray.lm.shims import attention_configs, attention_named, cpu_attention
from aisp_ray.rewards._stems import BLOCK, Stem

NAME = "aisp_ray_packed"
Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]  # layer -> keys and values, each [1, kv heads, length, width]
Part = tuple[tuple[int, ...], Sequence[tuple[tuple[int, ...], int]], Stem | None]  # head, (row ids, shared), stem
_active = threading.local()


class CannotShareError(RuntimeError):
    """This model or this batch needs what shared-prefix attention does not do."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring rows that continue the same `shared` prompt tokens."""

    start: int  # first token of the batch
    stop: int
    first_row: int
    last_row: int  # exclusive
    shared: int
    prefix: Layers | None


@dataclass(slots=True)
class Layout:
    """Where the rows of a batch lie, and what attention needs to know of it."""

    segments: list[Segment]
    lengths: list[int]  # tokens a row adds to its prefix
    record: Layers | None = None  # keys and values of this pass are kept here
    calls: int = 0
    gathers: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def padded_index(self, segment: Segment, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """([rows * width] token of each padded place, [tokens] padded place of each token), within a segment."""
        key = (segment.first_row, device)
        if key not in self.gathers:
            lengths = self.lengths[segment.first_row : segment.last_row]
            width = max(lengths)
            places = [row * width + at for row, length in enumerate(lengths) for at in range(length)]
            back = torch.tensor(places)
            index = torch.zeros(len(lengths) * width, dtype=torch.long)
            index[back] = torch.arange(len(places))
            self.gathers[key] = index.to(device), back.to(device)
        return self.gathers[key]


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface for packed rows: query [1, heads, N, width] -> [1, N, heads, width].

    Raises:
        CannotShareError: the layer asks for soft-capping, sinks or position biases.
    """
    layout: Layout | None = getattr(_active, "layout", None)
    asked = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if layout is None or asked:
        raise CannotShareError(f"shared-prefix attention does not do {', '.join(asked) or 'this pass'}")
    layout.calls += 1
    layer = module.layer_idx
    if layout.record is not None:
        layout.record[layer] = (key.contiguous(), value.contiguous())
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = [_segment(layout, segment, layer, (query, key, value), scale) for segment in layout.segments]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)  # [heads, N, width]
    return output.transpose(0, 1).unsqueeze(0), None


def _segment(
    layout: Layout, segment: Segment, layer: int, qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor], scale: float
) -> torch.Tensor:
    """Attention of one segment's tokens: [heads, tokens, width]."""
    query, key, value = (part[0, :, segment.start : segment.stop] for part in qkv)  # [heads, tokens, width]
    lengths = layout.lengths[segment.first_row : segment.last_row]
    rows, width = len(lengths), max(lengths)
    even = rows * width == segment.stop - segment.start
    index, back = (None, None) if even else layout.padded_index(segment, query.device)

    def spread(part: torch.Tensor) -> torch.Tensor:  # [heads, tokens, d] -> [rows, heads, width, d]
        part = part if even else part[:, index]
        return part.unflatten(1, (rows, width)).transpose(0, 1)

    def collect(part: torch.Tensor) -> torch.Tensor:  # and back
        part = part.transpose(0, 1).flatten(1, 2)
        return part if even else part[:, back]

    prefix = None
    if segment.shared:
        keys, values = segment.prefix[layer]
        prefix = keys[:, :, : segment.shared], values[:, :, : segment.shared]
    if query.device.type == "cpu":
        return _merged(query, (spread(query), spread(key), spread(value)), prefix, scale, collect)
    return collect(_joined(spread(query), spread(key), spread(value), prefix, scale))


def _merged(
    query: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
    collect: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Two attentions and one softmax: all tokens of the segment read the prefix as one block, without copies of it."""
    groups = own[0].shape[1] // own[1].shape[1]
    near, near_lse = _with_lse(own[0], *(_repeat(part, groups) for part in own[1:]), scale, causal=True)
    near = collect(near)  # [heads, tokens, d]
    if prefix is None:
        return near
    heads, tokens, _ = query.shape
    # the query heads of one key head stand behind each other as more queries
    folded = query.reshape(1, heads // groups, groups * tokens, -1)
    far, far_lse = _with_lse(folded, *prefix, scale, causal=False)
    far, far_lse = far.reshape(heads, tokens, -1), far_lse.reshape(heads, tokens, 1)
    near_lse = collect(near_lse.unsqueeze(-1))  # [heads, tokens, 1]
    return torch.lerp(far, near, torch.sigmoid(near_lse - far_lse).to(near.dtype))


def _with_lse(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(attention [b, heads, q, d], log-sum-exp of the scores [b, heads, q] in float32), by torch's CPU flash kernel."""
    return cpu_attention(query, key, value, scale, causal)


def _joined(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
) -> torch.Tensor:
    """[rows, heads, width, d] by torch's public attention: each row reads a copy of the prefix and then itself."""
    from torch.nn.attention.bias import causal_lower_right

    groups, rows, width = query.shape[1] // key.shape[1], query.shape[0], query.shape[2]
    if prefix is not None:
        key = torch.cat([prefix[0].expand(rows, -1, -1, -1), key], dim=2)
        value = torch.cat([prefix[1].expand(rows, -1, -1, -1), value], dim=2)
    bias = causal_lower_right(width, key.shape[2])
    return F.scaled_dot_product_attention(
        query, _repeat(key, groups), _repeat(value, groups), attn_mask=bias, scale=scale
    )


def _repeat(part: torch.Tensor, groups: int) -> torch.Tensor:
    return part if groups == 1 else part.repeat_interleave(groups, dim=1)


class PrefixStore:
    """Keys and values of prompts and stems by their tokens; the least recently used go when the bytes run out."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.bytes = self.hits = self.misses = 0
        self._kept: OrderedDict[tuple, tuple[Layers, int]] = OrderedDict()

    def get(self, head: tuple, read: Callable[[], Layers]) -> Layers:
        """The kept layers of these tokens, or `read()`'s, which are kept from now on if they fit."""
        layers = self.find(head)
        if layers is not None:
            self.hits += 1
            return layers
        self.misses += 1
        layers = read()
        self.keep(head, layers)
        return layers

    def find(self, name: tuple) -> Layers | None:
        """The kept layers, which count as used now; None if there are none."""
        if name not in self._kept:
            return None
        self._kept.move_to_end(name)
        return self._kept[name][0]

    def keep(self, name: tuple, layers: Layers) -> None:
        """Keep new layers if they fit."""
        size = sum(part.numel() * part.element_size() for pair in layers.values() for part in pair)
        if size <= self.max_bytes:
            self._kept[name] = (layers, size)
            self.bytes += size
            while self.bytes > self.max_bytes:
                self.bytes -= self._kept.popitem(last=False)[1][1]

    def drop(self, name: tuple) -> None:
        if name in self._kept:
            self.bytes -= self._kept.pop(name)[1]

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0


class Packed:
    """Reads (head tokens, rows) groups through a decoder `body`; `score` turns last hidden states into rewards."""

    def __init__(self, body: Any, score: Callable[[torch.Tensor], torch.Tensor], max_bytes: int):
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, attention)
        self.body = body
        self.score = score
        self.store = PrefixStore(max_bytes)
        self.device = next(body.parameters()).device
        self.tokens_read = 0

    def __call__(self, parts: Sequence[Part]) -> torch.Tensor:
        """Rewards [n] float32 on the CPU, of parts (head, [(row ids, shared tokens)], stem or None) in one pass."""
        layout = Layout([], [])
        ids: list[int] = []
        positions: list[int] = []
        for head, rows, stem in parts:
            prefix = self._kept(head, stem) if _shares(rows) else None
            for row, shared in rows:
                self._append(layout, len(ids), len(row) - shared, shared, prefix)
                ids.extend(row[shared:])
                positions.extend(range(shared, len(row)))
        hidden = self._forward(ids, positions, layout)  # [N, d]
        ends = torch.tensor(layout.lengths).cumsum(0) - 1
        return self.score(hidden[ends.to(hidden.device)]).cpu()

    def _append(self, layout: Layout, start: int, length: int, shared: int, prefix: Layers | None) -> None:
        """One more row, in the last segment where it continues the same prefix."""
        row = len(layout.lengths)
        layout.lengths.append(length)
        last = layout.segments[-1] if layout.segments else None
        if last is not None and last.prefix is prefix and last.shared == shared:
            layout.segments[-1] = Segment(last.start, start + length, last.first_row, row + 1, shared, prefix)
        else:
            layout.segments.append(Segment(start, start + length, row, row + 1, shared, prefix))

    def _kept(self, head: tuple[int, ...], stem: Stem | None) -> Layers:
        """Keys and values of the prompt, or of the prompt's part of the stem and its blocks."""
        if stem is None:
            return self.store.get(head, lambda: self._prefill(head))
        name = lambda size: (head, stem.start, stem.ids[:size])  # noqa: E731
        held = ((size, self.store.find(name(size))) for size in stem.sizes())
        size, layers = next(((size, found) for size, found in held if found is not None), (stem.start, None))
        if layers is None:
            layers = self.store.get(head, lambda: self._prefill(head))
        for longer in range(size + BLOCK, len(stem.ids) + 1, BLOCK):
            layers = self._grown(layers, stem.ids[:longer])
            self.store.keep(name(longer), layers)
            self.store.drop(name(longer - 2 * BLOCK))  # one before the last stays: a text may be cut into fewer tokens
        return layers

    def _grown(self, layers: Layers, ids: tuple[int, ...]) -> Layers:
        """Keys and values of `ids`, of which all but the last block are in `layers`."""
        known = len(ids) - BLOCK
        layout = Layout([Segment(0, BLOCK, 0, 1, known, layers)], [BLOCK], record={})
        self._forward(list(ids[known:]), list(range(known, len(ids))), layout)
        join = lambda old, new: torch.cat([old[:, :, :known], new], dim=2)  # noqa: E731
        return {
            layer: (join(layers[layer][0], keys), join(layers[layer][1], values))
            for layer, (keys, values) in layout.record.items()
        }

    def _prefill(self, head: tuple[int, ...]) -> Layers:
        layout = Layout([Segment(0, len(head), 0, 1, 0, None)], [len(head)], record={})
        self._forward(list(head), list(range(len(head))), layout)
        return layout.record

    def _forward(self, ids: list[int], positions: list[int], layout: Layout) -> torch.Tensor:
        _active.layout = layout
        with attention_named(attention_configs(self.body), NAME):
            output = self.body(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
            )
        self.tokens_read += len(ids)
        if layout.calls != self.body.config.get_text_config().num_hidden_layers:
            raise CannotShareError(f"{layout.calls} of the layers went through shared-prefix attention")
        return output.last_hidden_state[0]


def _shares(rows: Sequence[tuple[tuple[int, ...], int]]) -> bool:
    return any(shared for _, shared in rows)
