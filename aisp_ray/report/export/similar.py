"""Near-duplicate texts by MinHash (Broder, 1997): Jaccard similarity of their character 5-grams, of datasketch.

A text is compared only with the candidates of a locality-sensitive index: 100,000 texts of 150 words take five
minutes. Index and similarity are estimates from 128 hashes: near the threshold a pair may be missed or wrongly counted.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from typing import Any

NGRAM = 5  # characters; languages without spaces have them, too
HASHES = 128


def shingles(text: str) -> frozenset[str]:
    """The character n-grams of a text in lower case, with runs of spaces and line breaks as one space."""
    plain = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return frozenset(plain[at : at + NGRAM] for at in range(max(1, len(plain) - NGRAM + 1)))


def jaccard(one: str, other: str) -> float:
    """The exact similarity of two texts: what MinHash estimates."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


class SeenTexts:
    """Texts that were added, and whether a new one is nearly one of them.

    Raises:
        ValueError: the package datasketch is not installed.
    """

    def __init__(self, threshold: float):
        if importlib.util.find_spec("datasketch") is None:
            raise ValueError("near-duplicates are found by the datasketch package: pip install 'aisp-ray[export]'")
        from datasketch import MinHash, MinHashLSH

        self.threshold = threshold
        # misses cost more than candidates, which are compared again; an index needs two bands, which 1 would not give
        self._index = MinHashLSH(threshold=min(threshold, 0.9), num_perm=HASHES, weights=(0.2, 0.8))
        self._empty = MinHash(num_perm=HASHES, hashfunc=_hash)
        self._sketches: list[Any] = []

    def sketch(self, text: str) -> Any:
        """What `holds` and `add` take."""
        made = self._empty.copy()
        made.update_batch(shingles(text))
        return made

    def holds(self, sketch: Any) -> bool:
        """Whether a text with at least the threshold's similarity was added."""
        return any(self.near(sketch, self._sketches[at]) for at in self._index.query(sketch))

    def near(self, one: Any, other: Any) -> bool:
        return one.jaccard(other) >= self.threshold

    def add(self, sketch: Any) -> None:
        self._index.insert(len(self._sketches), sketch, check_duplication=False)
        self._sketches.append(sketch)


def _hash(shingle: str) -> int:
    import xxhash

    return xxhash.xxh32_intdigest(shingle.encode())
