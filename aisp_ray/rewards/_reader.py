"""Token rows in, rewards out: shared-prefix or padded reading, batches, halved when memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from aisp_ray.rewards._packed import CannotShareError, Packed, Part
from aisp_ray.rewards._padded import Padded, batches
from aisp_ray.rewards._stems import BLOCK, Stem, stem_of
from aisp_ray.rewards._tokens import Row

if TYPE_CHECKING:
    from aisp_ray.rewards._neural import NeuralReward

logger = logging.getLogger(__name__)
Group = tuple[tuple[int, ...], Sequence[Row]]  # (prompt tokens, rows longest first)
Item = tuple[int, int]  # (group, row)


class Reader:
    """A reward model on its device.

    Args:
        model: the checkpoint.
        body: its decoder, whose last hidden state is scored; None for encoders.
        score: float32 rewards [n] from last hidden states, or from logits where `body` is None.
        spec: batch_tokens, shared_prefix, prefix_mb and read_on are read.

    Raises:
        ValueError: read_on is asked for and this model cannot do it.
    """

    def __init__(self, model: Any, body: Any | None, score: Callable[[torch.Tensor], torch.Tensor], spec: NeuralReward):
        config = model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.batch_tokens = spec.batch_tokens
        self.halvings = 0
        self.padded = Padded(model, body, score)
        self.packed: Packed | None = None
        self.window: int | None = getattr(config, "sliding_window", None)
        self.max_rows = 1 if _rope_type(config) in ("longrope", "dynamic") else 1 << 30  # frequencies by batch maximum
        if spec.shared_prefix and body is not None:
            reason = self._try_packed(Packed(body, score, _prefix_bytes(spec.prefix_mb, self.padded.device)), config)
            if reason and spec.read_on:
                raise ValueError(
                    f"reward.read_on=true is not possible, {type(model).__name__} has no shared prefix: {reason}"
                )
            if reason:
                logger.warning("%s is read in padded batches of whole texts: %s", type(model).__name__, reason)
        if spec.read_on and self.packed is None:
            raise ValueError(f"reward.read_on=true needs a decoder; {type(model).__name__} is read as a whole")
        self.reads_on = spec.read_on is not False and spec.prefix_mb != 0

    def stats(self) -> dict[str, float]:
        stats = {"batch_halvings": float(self.halvings), "shared_prefix": float(self.packed is not None)}
        if self.packed is not None:
            store = self.packed.store
            stats |= {"prefix_hits": store.hits, "prefix_misses": store.misses, "prefix_bytes": store.bytes}
            stats["tokens_read"] = self.packed.tokens_read
        return {name: float(value) for name, value in stats.items()}

    @torch.inference_mode()
    def read(self, groups: Sequence[Group]) -> tuple[list[list[float]], list[list[str | None]]]:
        """(rewards, error texts) by group and row. A row that does not fit into memory even alone has an error."""
        rewards = [[math.nan] * len(rows) for _, rows in groups]
        errors: list[list[str | None]] = [[None] * len(rows) for _, rows in groups]
        items = [(g, r) for g, (_, rows) in enumerate(groups) for r in range(len(rows))]
        if self.packed is not None:
            items = self._read_packed(groups, items, rewards, errors)
        order = sorted(items, key=lambda item: -len(groups[item[0]][1][item[1]].ids))  # stable
        lengths = [len(groups[g][1][r].ids) for g, r in order]
        for start, stop in batches(lengths, self.batch_tokens, self.max_rows):
            self._guarded(order[start:stop], lambda some: self.padded(_rows(groups, some)), rewards, errors)
        return rewards, errors

    def _read_packed(
        self, groups: Sequence[Group], items: list[Item], rewards: list[list[float]], errors: list[list[str | None]]
    ) -> list[Item]:
        """Read what can be read with shared prefixes; returns the rest."""
        fits = [(g, r) for g, r in items if self.window is None or len(groups[g][1][r].ids) <= self.window]
        fits = [(g, r) for g, r in fits if self.window is None or len(groups[g][0]) <= self.window]
        stems = [self._stem(rows) for _, rows in groups]
        groups = [(head, _behind(stem, rows)) for (head, rows), stem in zip(groups, stems, strict=True)]
        for batch in _by_tokens(groups, fits, self.batch_tokens):
            self._guarded(batch, lambda some: self.packed(_parts(groups, some, stems)), rewards, errors)
        done = set(fits)
        return [item for item in items if item not in done]

    def _stem(self, rows: Sequence[Row]) -> Stem | None:
        """What the rows of a request share beyond the prompt, where that is kept."""
        if not self.reads_on or (self.window is not None and any(len(row.ids) > self.window for row in rows)):
            return None
        return stem_of(rows)

    def _guarded(
        self,
        items: list[Item],
        read: Callable[[list[Item]], torch.Tensor],
        rewards: list[list[float]],
        errors: list[list[str | None]],
    ) -> None:
        """Read a batch; out of memory, its halves."""
        try:
            values = read(items).tolist()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            values = None
        if values is not None:
            for (g, r), value in zip(items, values, strict=True):
                rewards[g][r] = value
            return
        self._free()
        if len(items) == 1:
            g, r = items[0]
            errors[g][r] = "out of memory although read alone; lower reward.max_tokens"
            return
        self.halvings += 1
        self.batch_tokens = max(1, self.batch_tokens // 2)
        logger.warning("out of memory with %d rows: halved, batch_tokens is now %d", len(items), self.batch_tokens)
        half = len(items) // 2
        self._guarded(items[:half], read, rewards, errors)
        self._guarded(items[half:], read, rewards, errors)

    def _free(self) -> None:
        if self.packed is not None:
            self.packed.store.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _try_packed(self, packed: Packed, config: Any) -> str | None:
        """Take shared-prefix reading into use if it gives the padded scores here; otherwise why not."""
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if kinds or self.max_rows == 1:
            return f"its layers are {', '.join(sorted(kinds)) or _rope_type(config)}"
        ids = [(7 * at + 3) % config.vocab_size for at in range(24)]
        head = tuple(ids[:9])
        rows = [Row(head + tuple(ids[9:18]), 9), Row(head + tuple(ids[18:]), 9), Row(head[:7] + tuple(ids[20:]), 7)]
        grown = Stem(head[:7] + tuple(ids[10 : 10 + 2 * BLOCK]), 7)
        rows += [Row((*grown.ids, ids[at]), len(grown.ids)) for at in (3, 4)]
        try:
            shared = packed(_parts([(head, rows)], [(0, 0), (0, 1), (0, 2)], [None]))
            further = packed(_parts([(head, rows)], [(0, 3), (0, 4)], [grown]))
        except (CannotShareError, AttributeError, NotImplementedError, TypeError, RuntimeError, ValueError) as error:
            return str(error)
        shared, whole = torch.cat([shared, further]), self.padded(rows)
        exact = next(packed.body.parameters()).dtype == torch.float32
        tolerance = (1e-4 if exact else 5e-2) * (1 + whole.abs().max())
        if not torch.allclose(shared, whole, rtol=0, atol=float(tolerance)):
            return f"with a shared prefix its scores differ by {float((shared - whole).abs().max()):.2g}"
        packed.store.clear()
        packed.store.hits = packed.store.misses = 0
        self.packed = packed
        return None


def _rows(groups: Sequence[Group], items: Sequence[Item]) -> list[Row]:
    return [groups[g][1][r] for g, r in items]


def _behind(stem: Stem | None, rows: Sequence[Row]) -> Sequence[Row]:
    """The rows with all of the stem as what they share."""
    return rows if stem is None else [replace(row, shared=len(stem.ids)) for row in rows]


def _parts(groups: Sequence[Group], items: Sequence[Item], stems: Sequence[Stem | None]) -> list[Part]:
    """What `Packed` reads: the rows of a group together, those with equally much of the prompt next to each other."""
    parts: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for g, r in items:
        row = groups[g][1][r]
        parts.setdefault(g, []).append((row.ids, min(row.shared, len(row.ids) - 1)))
    cut = {g for g in parts if all(groups[g][1][r].truncated for other, r in items if other == g)}
    # a prompt that nothing continues whole may be longer than the model can read
    return [
        (groups[g][0][: max(shared for _, shared in rows)] if g in cut else groups[g][0], rows, stems[g])
        for g, rows in parts.items()
    ]


def _by_tokens(groups: Sequence[Group], items: list[Item], batch_tokens: int) -> list[list[Item]]:
    """Batches of rows in order, by the tokens that they add to their prefixes; neighbours share as much of it."""
    order = sorted(items, key=lambda item: (item[0], -groups[item[0]][1][item[1]].shared))  # stable: longest first
    result: list[list[Item]] = []
    room = widest = 0
    for g, r in order:
        row = groups[g][1][r]
        tokens = max(1, len(row.ids) - row.shared)
        widest = max(widest, tokens)
        padded = widest * (len(result[-1]) + 1) if result else 0  # what attention lays out
        if not result or tokens > room or padded > 4 * batch_tokens:
            result.append([])
            room, widest = batch_tokens, tokens
        result[-1].append((g, r))
        room -= tokens
    return result


def _prefix_bytes(asked: int | None, device: torch.device) -> int:
    if asked is not None:
        return asked << 20
    return torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else 2048 << 20


def _rope_type(config: Any) -> str:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(rope.get("rope_type", rope.get("type", "default"))) if isinstance(rope, dict) else "default"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)
