"""Points in a judge's answer: JSON, the line that was asked for, or the last clear statement. Nothing is guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_N = r"(?<![\d.\-−–])(\d+(?:\.\d+)?)(?![\d.]*\d)"
_OF_TEN = r"(?:\s*(?:/|out\s+of|of)\s*10(?:\.0+)?(?!\d)|\s*points?)?"
_GAP = r"(?:[^\d\n\-−–]|[-−–](?=\s)){0,40}?"
_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL)
_SCALE = re.compile(
    r"\(?\b(?:on\s+a\s+scale\s+)?(?:of|from|between)?\s*\b[01]\s*(?:-|–|to|and)\s*10\b\)?", re.IGNORECASE
)
_RANGE = r"(?!\s*(?:-|–|to|or|and)\s*\d)"
_ALONE = re.compile(rf"^\W*?{_N}{_OF_TEN}\W*$")
_WITH_REASON = re.compile(rf"^\W*?{_N}{_OF_TEN}\s*(?:[,:;–—]|-\s|\bbecause\b|\bsince\b)[^\d]*$", re.IGNORECASE)
_LABELLED = re.compile(
    rf"\b(?:overall|final|verdict|ratings?|rate[sd]?|scores?|grade[sd]?|points?)\b{_GAP}{_N}{_OF_TEN}{_RANGE}",
    re.IGNORECASE,
)
_OUT_OF_TEN = re.compile(rf"{_N}\s*(?:/|out\s+of)\s*10(?:\.0+)?(?!\d)", re.IGNORECASE)
_BOTH = re.compile(
    rf"^\W*?(?:(?:answer|response|assistant)?\s*A\W{{1,4}})?{_N}{_OF_TEN}(?:[\s,;|*]|and\b|vs\.?)+"
    rf"(?:(?:answer|response|assistant)?\s*B\W{{1,4}})?{_N}{_OF_TEN}\W*$",
    re.IGNORECASE,
)
_OWN = {
    name: re.compile(
        rf"^\W*(?:(?:rating|score|points)\s+(?:of|for)\s+)?(?:answer|response|assistant)?\s*\W?{name}\b\W*"
        rf"(?:rating|score|points)?\W*?{_N}{_OF_TEN}\W*$",
        re.IGNORECASE,
    )
    for name in "AB"
}
_KEYS = ("rating", "overall", "overall_rating", "score", "overall_score", "points", "grade")
_PAIRS = (("rating_a", "rating_b"), ("a", "b"), ("score_a", "score_b"), ("answer_a", "answer_b"))


def schema(count: int) -> dict[str, Any]:
    """The `response_format` that asks for `count` ratings from 1 to 10, and a reason behind them."""
    names = _names(count)
    points = {"type": "integer", "enum": list(range(1, 11))}
    properties = {**dict.fromkeys(names, points), "reason": {"type": "string"}}
    shape = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": shape}}


def text_of(content: Any) -> str:
    """The text of a message's content: a text, or parts of which those that are text count (not thinking)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return ""
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
    texts = [part.get("text") for part in parts if part.get("type", "text") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))


def read_points(text: str, count: int) -> tuple[float, ...] | None:
    """`count` (1 or 2) ratings from 1 to 10; None where the answer states none, or several that contradict each other.

    Thoughts in <think>...</think> are passed over; an answer that ends inside them states nothing.
    """
    text = _THOUGHTS.sub("", text)
    text = re.split(r"</(?:think|thinking|thought|reasoning)>", text)[-1].strip()
    if re.search(r"<(?:think|thinking|thought|reasoning)>", text):
        return None
    found = _from_json(text, count)
    if found is None:
        lines = [line for line in _SCALE.sub(" ", text).splitlines() if line.strip()]
        found = _single(lines) if count == 1 else _pair(lines)
    return found if found is not None and all(1 <= point <= 10 for point in found) else None


def _names(count: int) -> tuple[str, ...]:
    return ("rating",) if count == 1 else ("rating_a", "rating_b")


def _from_json(text: str, count: int) -> tuple[float, ...] | None:
    """Ratings of the last JSON object that holds them; one that was cut off in its reason holds them too."""
    found = [points for value in _objects(text) if (points := _in_object(value, count)) is not None]
    if found:
        return found[-1]
    cut = [re.search(rf'"{name}"\s*:\s*(\d+(?:\.\d+)?)\s*,', text) for name in _names(count)]
    return tuple(float(one[1]) for one in cut if one) if text.lstrip("` \njson").startswith("{") and all(cut) else None


def _objects(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
        else:
            yield value
            at = end


def _in_object(value: Any, count: int) -> tuple[float, ...] | None:
    if not isinstance(value, Mapping):
        return None
    lower = {str(key).lower().replace(" ", "_"): item for key, item in value.items()}
    if count == 1:
        named = [lower[key] for key in _KEYS if key in lower][:1]
    else:
        keys = next((pair for pair in _PAIRS if lower.keys() >= set(pair)), ())
        named = [lower[key] for key in keys] or next((lower[key] for key in ("ratings", "scores") if key in lower), [])
    if not isinstance(named, list) or len(named) != count:
        return None
    try:
        return None if any(isinstance(item, bool) for item in named) else tuple(map(float, named))
    except (TypeError, ValueError):
        return None


def _single(lines: list[str]) -> tuple[float, ...] | None:
    if lines and (first := _ALONE.match(lines[0]) or _WITH_REASON.match(lines[0])):
        return (float(first[1]),)
    labelled = [(float(found[1]),) for line in lines for found in _LABELLED.finditer(line)]
    if labelled:
        return labelled[-1]
    alone = [(float(found[1]),) for line in lines if (found := _ALONE.match(line))]
    stated = {*alone, *((float(found[1]),) for line in lines for found in _OUT_OF_TEN.finditer(line))}
    return stated.pop() if len(stated) == 1 else None


def _pair(lines: list[str]) -> tuple[float, ...] | None:
    both = [(at, (float(found[1]), float(found[2]))) for at, line in enumerate(lines) if (found := _BOTH.match(line))]
    if both:
        return both[0][1] if both[0][0] == 0 else both[-1][1]
    own = {name: [float(found[1]) for line in lines if (found := _OWN[name].match(line))] for name in "AB"}
    return (own["A"][-1], own["B"][-1]) if own["A"] and own["B"] else None
