"""Which texts came before, in a few bytes per text: a driver holds it for every prompt of a night."""

from __future__ import annotations

import hashlib

import numpy as np

_LEAST_MERGED = 4096


class Seen:
    """A set of texts that only grows, by 128 bits of their hash.

    In a Python set a hash takes a hundred bytes. Here most of them lie in a sorted array, which takes sixteen, and only
    what came last in a set.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._first = np.empty(0, dtype=np.uint64)  # first half of each hash, sorted
        self._second = np.empty(0, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._recent) + len(self._first)

    def add(self, text: str) -> bool:
        """Whether it is new."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self._recent or self._is_merged(digest):
            return False
        self._recent.add(digest)
        if len(self._recent) >= max(_LEAST_MERGED, len(self._first) // 4):
            self._merge()
        return True

    def _is_merged(self, digest: bytes) -> bool:
        first, second = np.frombuffer(digest, dtype=np.uint64)
        at = int(self._first.searchsorted(first))
        while at < len(self._first) and self._first[at] == first:
            if self._second[at] == second:
                return True
            at += 1
        return False

    def _merge(self) -> None:
        recent = np.frombuffer(b"".join(self._recent), dtype=np.uint64).reshape(-1, 2)
        first, second = (np.concatenate(pair) for pair in ((self._first, recent[:, 0]), (self._second, recent[:, 1])))
        order = first.argsort()
        self._first, self._second = first[order], second[order]
        self._recent = set()
