"""Words of a text, for measures that count them: no model, no download, any language written with spaces."""

from __future__ import annotations

import re

# a run of letters or digits (inner apostrophes and hyphens kept), or one other mark
_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")


def words(text: str | None) -> list[str]:
    """Word tokens: "It's well-known, isn't it?" -> It's, well-known, ",", isn't, it, "?". Case is kept."""
    return _WORD.findall(text) if text else []


def num_unique_ngrams(tokens: list[str], n: int) -> tuple[int, int]:
    """(different n-grams, all n-grams) of a token list."""
    return len(set(zip(*(tokens[i:] for i in range(n)), strict=False))), max(0, len(tokens) - n + 1)
