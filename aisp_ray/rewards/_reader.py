"""Token rows in, rewards out: shared-prefix or padded reading, batches, halved when memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from aisp_ray.lm.checkpoints import pin_arithmetic
from aisp_ray.lm.checks import own_states, probe, probe_lengths, require_equal
from aisp_ray.lm.memory import free_bytes, give_back
from aisp_ray.lm.support import UnsupportedModelError, length_dependent_rope, require_supported
from aisp_ray.rewards._packed import Group as PackedGroup
from aisp_ray.rewards._packed import Packed
from aisp_ray.rewards._padded import Padded, batches
from aisp_ray.rewards._stems import BLOCK, Stem, stem_of
from aisp_ray.rewards._tokens import TokenRow

if TYPE_CHECKING:
    from aisp_ray.rewards._neural import NeuralReward

logger = logging.getLogger(__name__)
Group = tuple[tuple[int, ...], Sequence[TokenRow]]  # (prompt tokens, rows longest first)
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
        self.num_embeddings = int(model.get_input_embeddings().weight.shape[0])
        self.device = next(model.parameters()).device
        if self.device.type == "cuda":
            pin_arithmetic()
        self.batch_tokens = spec.batch_tokens
        self.halvings = 0
        self.padded, self.score = Padded(model, body, score), score
        self.packed: Packed | None = None
        self.max_rows = 1 if length_dependent_rope(config) else 1 << 30
        self._require_finite(model, spec.model)
        if spec.shared_prefix and body is not None:
            try:
                self.packed = _packed(model, body, spec)
            except UnsupportedModelError as error:
                name = type(model).__name__
                if spec.read_on:
                    text = f"reward.read_on=true is not possible, {name} has no shared prefix: {error}"
                    raise ValueError(text) from error
                logger.warning("%s is read in padded batches of whole texts: %s", name, error)
        if spec.read_on and self.packed is None:
            raise ValueError(f"reward.read_on=true needs a decoder; {type(model).__name__} is read as a whole")
        self.reads_on = spec.read_on is not False and spec.prefix_mb != 0

    def stats(self) -> dict[str, float]:
        stats = {"batch_halvings": float(self.halvings), "shared_prefix": float(self.packed is not None)}
        if self.packed is not None:
            store = self.packed.store
            stats |= {"prefix_hits": store.hits, "prefix_misses": store.misses, "prefix_bytes": store.num_bytes}
            stats["tokens_read"] = self.packed.tokens_read
        return {name: float(value) for name, value in stats.items()}

    @torch.inference_mode()
    def read(self, groups: Sequence[Group]) -> tuple[list[list[float]], list[list[str | None]]]:
        """(rewards, error texts) by group and row. A row that does not fit into memory even alone has an error."""
        rewards = [[math.nan] * len(rows) for _, rows in groups]
        errors: list[list[str | None]] = [[None] * len(rows) for _, rows in groups]
        items = [(g, r) for g, (_, rows) in enumerate(groups) for r in range(len(rows))]
        if self.packed is not None:
            packed, stems = self.packed, [stem_of(rows) if self.reads_on else None for _, rows in groups]
            groups = [(head, _behind(stem, rows)) for (head, rows), stem in zip(groups, stems, strict=True)]
            read = lambda some: self.score(packed(_parts(groups, some, stems))).cpu()  # noqa: E731
            for batch in _by_tokens(groups, items, self.batch_tokens):
                self._guarded(batch, read, rewards, errors)
            return rewards, errors
        order = sorted(items, key=lambda item: -len(groups[item[0]][1][item[1]].ids))  # stable
        lengths = [len(groups[g][1][r].ids) for g, r in order]
        for start, stop in batches(lengths, self.batch_tokens, self.max_rows):
            self._guarded(order[start:stop], lambda some: self.padded(_rows(groups, some)), rewards, errors)
        return rewards, errors

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
            self.packed.store.trim(0)
        give_back(self.device)

    @torch.inference_mode()
    def _require_finite(self, model: Any, name: str) -> None:
        """Raises ValueError where not even a short text has a reward."""
        value = float(self.padded([TokenRow(tuple(probe(9, self.num_embeddings)), 0)])[0])
        if math.isfinite(value):
            return
        broken = [part for part, weight in model.named_parameters() if not weight.isfinite().all()]
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        reason = f"its activations overflow in {dtype}; set reward.dtype=bfloat16 or float32"
        if broken:
            reason = f"the checkpoint is damaged, weights that are not finite: {', '.join(broken[:3])}"
        raise ValueError(f"{name} gives a short text the reward {value}: {reason}")


@torch.inference_mode()
def _packed(model: Any, body: Any, spec: NeuralReward) -> Packed:
    """Shared-prefix reading, checked against the body's own forward: rows behind a whole prompt, part of one and a
    growing text, some beyond the smallest window.

    Raises:
        UnsupportedModelError: this model cannot share a prefix.
    """
    require_supported(model, states=False)
    device = next(body.parameters()).device
    packed = Packed(body, _prefix_bytes(spec.prefix_mb, device))
    config = body.config.get_text_config()
    windows = [window for window in [getattr(config, "sliding_window", None)] if window]
    longest = (getattr(config, "max_position_embeddings", None) or 1 << 20) - 2 * BLOCK - 1
    own, found = [], []
    for length in probe_lengths(windows, longest):
        head, more = tuple(probe(length, config.vocab_size)), tuple(probe(2 * BLOCK + 3, config.vocab_size))
        rows = [(head + more[:3], length), (head + more[1:2], length), (head[:-2] + more[:5], length - 2)]
        stem = Stem(head[:-2] + more[: 2 * BLOCK], length - 2)
        grown = [((*stem.ids, token), len(stem.ids)) for token in more[-2:]]
        try:
            found += [*packed([(head, rows, None)]), *packed([(head, grown, stem)])]
        except (AttributeError, NotImplementedError, TypeError, RuntimeError) as error:
            raise UnsupportedModelError(f"it fails on a shared prefix with {type(error).__name__}: {error}") from error
        own += [own_states(body, ids)[-1] for ids, _ in (*rows, *grown)]
    require_equal([(one.float().cpu(), other) for one, other in zip(found, own, strict=True)], found[0].dtype)
    packed.store.trim(0)
    packed.store.hits = packed.store.misses = 0
    return packed


def _rows(groups: Sequence[Group], items: Sequence[Item]) -> list[TokenRow]:
    return [groups[g][1][r] for g, r in items]


def _behind(stem: Stem | None, rows: Sequence[TokenRow]) -> Sequence[TokenRow]:
    """The rows with all of the stem as what they share."""
    return rows if stem is None else [replace(row, shared=len(stem.ids)) for row in rows]


def _parts(groups: Sequence[Group], items: Sequence[Item], stems: Sequence[Stem | None]) -> list[PackedGroup]:
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
    return free_bytes(device) // 3 if device.type == "cuda" else 2048 << 20


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)
