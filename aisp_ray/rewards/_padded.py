"""Padded scoring: whole texts side by side, the plain way. Shared-prefix scoring is tested against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from aisp_ray.rewards._tokens import TokenRow


class Padded:
    """Reads rows as right-padded batches.

    The end of a row is its last attended token, never a token id, so a pad token that equals the end token (or occurs
    in the text) changes nothing.

    Args:
        model: the whole classifier, used where `body` is None.
        body: the decoder under the head, or None for encoders, whose own forward knows how to pool.
        score: float32 rewards [n] from the last hidden states [n, d], or from logits [n, labels] where `body` is None.
    """

    def __init__(self, model: Any, body: Any | None, score: Callable[[torch.Tensor], torch.Tensor]):
        self.model = model
        self.body = body
        self.score = score
        self.device = next(model.parameters()).device

    def __call__(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """Rewards [n] float32 on the CPU."""
        width = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)  # [n, width]; what fills the padding is never read
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        segments = torch.zeros(len(rows), width, dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, : len(row.ids)] = torch.tensor(row.ids)
            mask[at, : len(row.ids)] = 1
            if row.segments is not None:
                segments[at, : len(row.ids)] = torch.tensor(row.segments)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        if self.body is None:
            if rows[0].segments is not None:
                inputs["token_type_ids"] = segments.to(self.device)
            return self.score(self.model(**inputs).logits).cpu()
        hidden = self.body(**inputs, use_cache=False).last_hidden_state  # [n, width, d]
        last = torch.tensor([len(row.ids) - 1 for row in rows], device=hidden.device)
        return self.score(hidden[torch.arange(len(rows), device=hidden.device), last]).cpu()


def batches(lengths: Sequence[int], batch_tokens: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows, sorted longest first, whose padded size stays within `batch_tokens` (one row always fits)."""
    start = 0
    while start < len(lengths):
        count = max(1, min(batch_tokens // max(1, lengths[start]), max_rows))
        yield start, min(start + count, len(lengths))
        start += count
