"""Suffixes of ended rows, kept so that a later request that continues one of them need not decode it again.

Methods that search token by token (ARGS), by segments or by resampling tails ask for the same response prefixes again
and again. What a row wrote at a position depends on its tokens up to there only, so a copy is what decoding would give,
bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

MOST = 64  # snapshots of one prompt


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A row's suffix over its first `kept` tokens."""

    tokens: tuple[int, ...]
    kept: int
    keys: tuple[Tensor | None, ...]  # per layer [heads, kept, key_dim]
    values: tuple[Tensor | None, ...]
    states: tuple[Tensor, ...]  # convolution and recurrent states after `kept` tokens

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values, *self.states) if t is not None)

    def serves(self, tokens: Sequence[int]) -> int:
        """How many of these tokens it spares; states fit at their own length only."""
        limit = min(self.kept, len(tokens))
        if self.states:
            return self.kept if limit == self.kept and self.tokens[: self.kept] == tuple(tokens[: self.kept]) else 0
        same = (i for i in range(limit) if self.tokens[i] != tokens[i])
        return next(same, limit)


class Snapshots:
    """Snapshots of one prompt, the oldest dropped."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[int, ...], Snapshot] = OrderedDict()
        self.num_bytes = 0

    def keep(self, snapshot: Snapshot) -> None:
        old = self._held.pop(snapshot.tokens, None)
        self.num_bytes += snapshot.num_bytes - (old.num_bytes if old is not None else 0)
        self._held[snapshot.tokens] = snapshot
        while len(self._held) > MOST:
            self.drop_oldest()

    def drop_oldest(self) -> int:
        """Returns the bytes that are free then."""
        freed = self._held.popitem(last=False)[1].num_bytes
        self.num_bytes -= freed
        return freed

    def find(self, tokens: Sequence[int]) -> tuple[Snapshot | None, int]:
        """The snapshot that spares most of these tokens, and how many."""
        best, most = None, 0
        for snapshot in reversed(self._held.values()):
            count = snapshot.serves(tokens)
            if count > most:
                best, most = snapshot, count
        return best, most

    def __len__(self) -> int:
        return len(self._held)
