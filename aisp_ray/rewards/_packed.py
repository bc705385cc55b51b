"""Shared-prefix reading: the prompt is read once and kept, only response tokens run, and no padding is computed.

The response tokens of a batch are laid end to end as one sequence [1, N]. Everything in a decoder but attention works
on single tokens, so the model runs unmodified; its attention is replaced: a token sees the kept keys of its prompt and
the tokens of its own response before it. One softmax over both, merged by log-sum-exps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aisp_ray.lm.attention import HIDDEN, Call, Part, attending, span
from aisp_ray.lm.prefixes import PrefixStore
from aisp_ray.lm.shims import attention_configs, cpu_attention
from aisp_ray.lm.support import UnsupportedModelError
from aisp_ray.rewards._stems import BLOCK, Stem

Group = tuple[tuple[int, ...], Sequence[tuple[tuple[int, ...], int]], Stem | None]  # head, (row ids, shared), stem
SCORES = 1 << 26  # logits of one product that are held at a time, where they are held at all
COPIED = 1 << 15  # tokens of prefixes and rows that are laid side by side at a time, where each row needs a copy


@dataclass(slots=True, eq=False)
class Keys:
    """What is kept of a prompt or stem. layers: keys and values of each, [1, key heads, length, width]."""

    layers: dict[int, tuple[Tensor, Tensor]]
    users: int = 0

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for pair in self.layers.values() for part in pair)

    def shed(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring rows that continue the same `shared` prompt tokens."""

    start: int  # first token of the batch
    stop: int
    first_row: int
    last_row: int  # exclusive
    shared: int
    prefix: Keys | None


@dataclass(slots=True)
class Layout:
    """Where the rows of a batch lie, and their attention."""

    segments: list[Segment]
    lengths: list[int]  # tokens a row adds to its prefix
    record: dict[int, tuple[Tensor, Tensor]] | None = None  # keys and values of this pass are kept here
    calls: int = 0
    memo: dict[Any, Any] = field(default_factory=dict)

    def append(self, start: int, length: int, shared: int, prefix: Keys | None) -> None:
        """One more row, in the last segment where it continues the same prefix."""
        row = len(self.lengths)
        self.lengths.append(length)
        last = self.segments[-1] if self.segments else None
        if last is not None and last.prefix is prefix and last.shared == shared:
            self.segments[-1] = Segment(last.start, start + length, last.first_row, row + 1, shared, prefix)
        else:
            self.segments.append(Segment(start, start + length, row, row + 1, shared, prefix))

    def attend(self, call: Call) -> Tensor:
        """The attention of packed rows: query [1, heads, N, D] -> [1, N, heads, value width].

        Raises:
            UnsupportedModelError: the layer adds a bias by position.
        """
        if call.options.get("position_bias") is not None:
            raise UnsupportedModelError("its attention adds a bias by position")
        self.calls += 1
        if self.record is not None:
            self.record[call.layer] = (call.key.contiguous(), call.value.contiguous())
        outputs = [self._segment(segment, call) for segment in self.segments]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)  # [heads, N, width]
        return output.to(call.query.dtype).transpose(0, 1).unsqueeze(0)

    def _segment(self, segment: Segment, call: Call) -> Tensor:
        """Attention of one segment's tokens: [heads, tokens, width]."""
        lengths = self.lengths[segment.first_row : segment.last_row]
        rows, width = len(lengths), max(lengths)
        even = rows * width == segment.stop - segment.start
        index, back = (None, None) if even else self._padded_index(segment, call.query.device)

        def spread(part: Tensor) -> Tensor:  # [heads, tokens, d] -> [rows, heads, width, d]
            part = part if even else part[:, index]
            return part.unflatten(1, (rows, width)).transpose(0, 1)

        def collect(part: Tensor) -> Tensor:  # and back
            part = part.transpose(0, 1).flatten(1, 2)
            return part if even else part[:, back]

        query, *own = (part[0, :, segment.start : segment.stop] for part in (call.query, call.key, call.value))
        softcap, sinks, window = (call.options.get(name) for name in ("softcap", "s_aux", "sliding_window"))
        if window is not None and segment.shared + width <= window:
            window = None
        groups = query.shape[0] // own[0].shape[0]
        near = [spread(query), *(_repeat(spread(part), groups) for part in own)]
        prefix = segment.prefix.layers[call.layer] if segment.prefix is not None and segment.shared else None
        if not query.is_cpu and softcap is None and sinks is None and window is None:
            return collect(_joined(near, prefix, segment.shared, call.scale))
        out, mass = (collect(part) for part in _near(near, call.scale, softcap, window))
        if prefix is not None:
            far = self._far(segment, query, prefix, (call.scale, softcap, window))
            share = torch.sigmoid(mass - far[1])
            out, mass = torch.lerp(far[0], out, share.to(out.dtype)), torch.logaddexp(mass, far[1])
        if sinks is not None:  # one more logit per head, which takes mass and gives nothing
            out = out * torch.sigmoid(mass - sinks.float().view(-1, 1, 1)).to(out.dtype)
        return out

    def _far(
        self,
        segment: Segment,
        query: Tensor,
        prefix: tuple[Tensor, Tensor],
        law: tuple[float, float | None, int | None],
    ) -> Part:
        """All tokens of a segment over its prefix as one block, without copies of it: [heads, tokens, ...]."""
        scale, softcap, window = law
        first = 0 if window is None else max(0, segment.shared - window + 1)
        keys, values = (part[:, :, first : segment.shared] for part in prefix)
        heads, tokens, dim = query.shape
        groups = heads // keys.shape[1]
        fits = tokens if softcap is None and window is None else max(1, SCORES // (heads * keys.shape[2]))
        parts = []
        for start in range(0, tokens, fits):
            some = query[:, start : start + fits]
            # the query heads of one key head follow each other as more queries
            folded = some.reshape(1, heads // groups, -1, dim)
            mask = None
            if window is not None:
                at = segment.shared + self._places(segment, query.device)[start : start + fits]  # [tokens]
                hidden = torch.arange(first, segment.shared, device=query.device) <= at[:, None] - window
                mask = (hidden * HIDDEN).repeat(groups, 1)[None, None]  # [1, 1, g * tokens, k]
            out, mass = span(folded, keys, values, scale, mask, softcap)
            parts.append((out.reshape(heads, some.shape[1], -1), mass.reshape(heads, some.shape[1], 1)))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)

    def _places(self, segment: Segment, device: Any) -> Tensor:
        """Place of each of a segment's tokens in its row, int64 [tokens]."""
        key = ("places", segment.first_row, device)
        if key not in self.memo:
            lengths = self.lengths[segment.first_row : segment.last_row]
            self.memo[key] = torch.cat([torch.arange(length) for length in lengths]).to(device)
        return self.memo[key]

    def _padded_index(self, segment: Segment, device: Any) -> tuple[Tensor, Tensor]:
        """([rows * width] token of each padded place, [tokens] padded place of each token), within a segment."""
        key = (segment.first_row, device)
        if key not in self.memo:
            lengths = self.lengths[segment.first_row : segment.last_row]
            width = max(lengths)
            back = torch.cat([row * width + torch.arange(length) for row, length in enumerate(lengths)])
            index = torch.zeros(len(lengths) * width, dtype=torch.long)
            index[back] = torch.arange(len(back))
            self.memo[key] = index.to(device), back.to(device)
        return self.memo[key]


def _near(own: Sequence[Tensor], scale: float, softcap: float | None, window: int | None) -> Part:
    """Rows over themselves: query, keys and values [rows, heads, width, d] -> attention, log-sum-exps [..., 1]."""
    query, keys, values = own
    rows, heads, width, _ = query.shape
    if softcap is None and window is None and query.is_cpu and keys.shape == values.shape:
        out, mass = cpu_attention(query, keys, values, scale, causal=True)
        return out, mass.unsqueeze(-1)
    at = torch.arange(width, device=query.device)
    hidden = at > at[:, None]
    if window is not None:
        hidden = hidden | (at <= at[:, None] - window)
    mask = (hidden * HIDDEN)[None, None]  # [1, 1, width, width]
    fits = max(1, SCORES // (heads * width * width))
    parts = [
        span(query[i : i + fits], keys[i : i + fits], values[i : i + fits], scale, mask, softcap)
        for i in range(0, rows, fits)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _joined(own: Sequence[Tensor], prefix: tuple[Tensor, Tensor] | None, shared: int, scale: float) -> Tensor:
    """[rows, heads, width, d] by torch's public attention: each row reads a copy of the prefix and then itself."""
    from torch.nn.attention.bias import causal_lower_right

    heads, width = own[0].shape[1:3]
    shared = shared if prefix is not None else 0
    fits = max(1, COPIED // (shared + width))
    outputs = []
    for query, keys, values in zip(*(part.split(fits) for part in own), strict=True):
        if prefix is not None:
            before = (_repeat(part[:, :, :shared], heads // part.shape[1]) for part in prefix)
            rows = [part.expand(len(query), -1, -1, -1) for part in before]
            keys, values = torch.cat([rows[0], keys], dim=2), torch.cat([rows[1], values], dim=2)
        bias = causal_lower_right(width, shared + width)
        outputs.append(F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scale))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _repeat(part: Tensor, groups: int) -> Tensor:
    return part if groups == 1 else part.repeat_interleave(groups, dim=1)


class Packed:
    """Reads (head tokens, rows) groups through a decoder `body`."""

    def __init__(self, body: Any, max_bytes: int):
        self.body = body
        self.configs = attention_configs(body)
        self.num_layers = body.config.get_text_config().num_hidden_layers
        self.store = PrefixStore(self._prefill, max_bytes)
        self.device = next(body.parameters()).device
        self.tokens_read = 0

    def __call__(self, groups: Sequence[Group]) -> Tensor:
        """Last hidden states [n, d] at the ends of the rows of (head, [(row ids, shared tokens)], stem or None) groups,
        in one pass."""
        layout = Layout([], [])
        ids: list[int] = []
        positions: list[int] = []
        held: list[Keys] = []
        try:
            for head, rows, stem in groups:
                prefix = None
                if any(shared for _, shared in rows):
                    held.append(prefix := self._kept(head, stem))
                for row, shared in rows:
                    layout.append(len(ids), len(row) - shared, shared, prefix)
                    ids.extend(row[shared:])
                    positions.extend(range(shared, len(row)))
            hidden = self._forward(ids, positions, layout)  # [N, d]
        finally:
            for keys in held:
                self.store.release(keys)
            self.store.trim()
        ends = torch.tensor(layout.lengths).cumsum(0) - 1
        return hidden[ends.to(hidden.device)]

    def _kept(self, head: tuple[int, ...], stem: Stem | None) -> Keys:
        """Keys and values of the prompt, or of the prompt's part of the stem and its blocks. Pair with `release`."""
        if stem is None:
            return self.store.acquire(head)[0]
        name = lambda size: (head, stem.start, stem.ids[:size])  # noqa: E731
        sizes = ((size, self.store.find(name(size))) for size in stem.sizes())
        size, keys = next(((size, found) for size, found in sizes if found is not None), (stem.start, None))
        if keys is None:
            keys, _ = self.store.acquire(head)
        else:
            keys.users += 1
        for longer in range(size + BLOCK, len(stem.ids) + 1, BLOCK):
            grown = self._grown(keys, stem.ids[:longer])
            self.store.release(keys)
            keys = grown
            keys.users += 1
            self.store.put(name(longer), keys)
            self.store.drop(name(longer - 2 * BLOCK))  # one before the last stays: a text may be cut into fewer tokens
        return keys

    def _grown(self, keys: Keys, ids: tuple[int, ...]) -> Keys:
        """Keys and values of `ids`, of which all but the last block are in `keys`."""
        known = len(ids) - BLOCK
        new = self._read(ids[known:], known, keys)
        join = lambda old, more: torch.cat([old[:, :, :known], more], dim=2)  # noqa: E731
        layers = {}
        for layer, (keys_then, values_then) in keys.layers.items():
            layers[layer] = (join(keys_then, new.layers[layer][0]), join(values_then, new.layers[layer][1]))
        return Keys(layers)

    def _prefill(self, head: tuple[int, ...]) -> Keys:
        return self._read(head, 0, None)

    def _read(self, ids: tuple[int, ...], known: int, prefix: Keys | None) -> Keys:
        """Keys and values of one row's new tokens."""
        record: dict[int, tuple[Tensor, Tensor]] = {}
        layout = Layout([], [], record=record)
        layout.append(0, len(ids), known, prefix)
        self._forward(list(ids), list(range(known, known + len(ids))), layout)
        return Keys(record)

    def _forward(self, ids: list[int], positions: list[int], layout: Layout) -> Tensor:
        with attending(self.configs, layout.attend):
            output = self.body(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
            )
        self.tokens_read += len(ids)
        if layout.calls != self.num_layers:
            raise UnsupportedModelError(f"{layout.calls} of its {self.num_layers} layers used the attention given")
        return output.last_hidden_state[0]
