"""From texts to token rows: no doubled start token, and a row that is too long loses prompt and never response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aisp_ray.rewards._templates import RewardRenderer
from aisp_ray.types import Prompt


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One response with its prompt, as tokens.

    ids: the whole sequence. shared: how many leading tokens it has in common with the prompt's own tokens `head`.
    """

    ids: tuple[int, ...]
    shared: int
    truncated: bool = False
    segments: tuple[int, ...] | None = None  # token type ids of an encoder that reads a pair


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of one request, in response order; None with an error text where a response cannot be read."""

    head: tuple[int, ...]
    rows: tuple[TokenRow | None, ...]
    errors: tuple[str | None, ...]


def encode(
    tokenizer: Any, renderer: RewardRenderer, prompt: Prompt, responses: Sequence[str], max_tokens: int
) -> Encoded:
    """Token rows of a prompt's responses.

    Each text is tokenised as a whole, so tokens that straddle the border of prompt and response are what the model was
    trained on; what the rows share with the prompt is found afterwards, by comparison.

    Raises:
        ValueError: the dialogue does not fit the template.
    """
    head_text, texts = renderer.render(prompt, responses)
    head, *bodies = (_closed(tokenizer, renderer, ids) for ids in _tokenise(tokenizer, [head_text, *texts]))
    if renderer.adds_eos:
        head = head[:-1]
    results = [_fit(tuple(ids), _common(head, ids), max_tokens, tokenizer.bos_token_id) for ids in bodies]
    rows, errors = zip(*results, strict=True) if results else ((), ())
    return Encoded(tuple(head), rows, errors)


def encode_pairs(
    tokenizer: Any, renderer: RewardRenderer, prompt: Prompt, responses: Sequence[str], limit: int
) -> Encoded:
    """Token rows of an encoder that reads (prompt, response) as two segments with its own special tokens."""
    first = renderer.render(prompt, ())[0].rstrip("\n")
    results = [_pair(tokenizer, first, response, limit) for response in responses]
    rows, errors = zip(*results, strict=True) if results else ((), ())
    return Encoded((), rows, errors)


def _pair(tokenizer: Any, first: str, second: str, limit: int) -> tuple[TokenRow | None, str | None]:
    whole = tokenizer(first, second, truncation=False, verbose=False)
    excess = len(whole["input_ids"]) - limit
    if excess > 0:
        prompt_tokens = len(_tokenise(tokenizer, [first])[0])
        if excess >= prompt_tokens:
            return None, _too_long(len(whole["input_ids"]) - prompt_tokens, limit)
        tokenizer.truncation_side = "left"  # the end of the prompt is next to the response
        whole = tokenizer(first, second, truncation="only_first", max_length=limit)
    segments = whole.get("token_type_ids")
    return TokenRow(tuple(whole["input_ids"]), 0, excess > 0, None if segments is None else tuple(segments)), None


def _tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def _closed(tokenizer: Any, renderer: RewardRenderer, ids: list[int]) -> list[int]:
    """Start and end token where the template leaves them to us; exactly one start token, whoever wrote it."""
    bos = tokenizer.bos_token_id
    if renderer.adds_bos and bos is not None:
        ids = [bos, *ids]
    while bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
        ids = ids[1:]
    if renderer.adds_eos:
        ids = [*ids, tokenizer.eos_token_id]
    return ids


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(at for at in range(length) if first[at] != second[at])


def _fit(ids: tuple[int, ...], shared: int, limit: int, bos: int | None) -> tuple[TokenRow | None, str | None]:
    """The row cut to `limit` tokens: from the left of the prompt, behind its start token."""
    if not ids:
        return None, "the response has no tokens under this template"
    if len(ids) <= limit:
        return TokenRow(ids, shared), None
    start = 1 if ids[0] == bos else 0
    excess = len(ids) - limit
    if start + excess > shared:
        return None, _too_long(len(ids) - shared, limit)
    return TokenRow(ids[:start] + ids[start + excess :], shared=start, truncated=True), None


def _too_long(count: int, limit: int) -> str:
    return f"the response has {count} tokens and does not fit max_tokens={limit} even without its prompt"
