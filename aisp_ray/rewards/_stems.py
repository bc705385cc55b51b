"""What responses have in common beyond their prompt, where they are one text that grows by a few tokens (ARGS).

Such a request is scored again and again with a little more of the same text. The common tokens are read once and kept;
then only their last few and each response's own run. Nothing is assumed about vocabularies: common are tokens of the
reward model's own reading of the whole texts, and where a longer text is cut into other tokens there is less in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aisp_ray.rewards._tokens import TokenRow

BLOCK = 4  # tokens by which a stem grows; all of its rows read the up to BLOCK - 1 common tokens behind it
REST = 8  # tokens at most that a row may have of its own: more is not a text that grows, but a sample


@dataclass(frozen=True, slots=True)
class Stem:
    """Tokens that all rows of a request begin with: `start` tokens of the prompt, and then whole blocks.

    It depends on the request alone and is always read in the same blocks, so it gives the same bits whether its
    beginning was still kept or is read anew.
    """

    ids: tuple[int, ...]
    start: int

    def sizes(self) -> range:
        """Lengths at which its keys and values are kept, the longest first."""
        return range(len(self.ids), self.start, -BLOCK)


def stem_of(rows: Sequence[TokenRow]) -> Stem | None:
    """The stem of a request's distinct rows; None where they are not one growing text."""
    if len(rows) < 2 or any(row.truncated or row.shared != rows[0].shared for row in rows):
        return None
    start = rows[0].shared
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)  # what these share all rows share
    common = next((at for at, (one, two) in enumerate(zip(first, last, strict=False)) if one != two), len(first))
    common = min(common, min(len(row.ids) for row in rows) - 1)  # each keeps a last token to be scored at
    size = start + (common - start) // BLOCK * BLOCK
    if start == 0 or size <= start or max(len(row.ids) for row in rows) - common > REST:
        return None
    return Stem(first[:size], start)
