"""Whether the final answer of a solution equals the reference, as a reward of 1 or 0 (GSM8K, MATH and their like).

Differs from string matching: 0.5, 1/2, \\frac12 and 50% are the same answer; values are compared by sympy.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from aisp_ray.rewards._algebra import MAX_LENGTH, NotAlgebraError, equal, parse
from aisp_ray.rewards.base import RewardSpec, ScoreRequest
from aisp_ray.types import Prompt, Scores

_STATED = re.compile(r"(?:final\s+)?answer\s*(?:is|:|=)\s*:?\s*(?:\\\[|\$\$)?\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?%?|-?\.\d+")


@dataclass(frozen=True, kw_only=True)
class MathAnswer(RewardSpec):
    """Settings of answer checking. A prompt's reference is `meta["answer"]`."""

    tolerance: float = 1e-6  # relative difference that two numbers may have
    no_answer: float = 0.0  # reward of a response in which no answer is found

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; it is a relative difference, from 0 to below 1")

    def load(self, device: str) -> MathAnswerScorer:
        import sympy  # noqa: F401  (a missing library is said at load, not at the first prompt)

        return MathAnswerScorer(self)


class MathAnswerScorer:
    """`rewards.base.Scorer` by equivalence of answers. Needs no model and no device."""

    max_requests = 1

    def __init__(self, spec: MathAnswer):
        self.spec = spec

    def describe(self, prompt: Prompt) -> str | None:
        return None

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Scores:
        started = time.perf_counter()
        reference = request.prompt.meta.get("answer")
        count = len(request.responses)
        if reference is None or not str(reference).strip():
            text = f'prompt {request.prompt.prompt_id}: math_answer needs meta["answer"]; use a maths data set'
            return Scores((math.nan,) * count, (text,) * count)
        expected = reference_answer(str(reference))
        found: dict[str, float] = {}
        for response in request.responses:
            if response not in found:
                found[response] = self._reward(extract_answer(response), expected)
        rewards = tuple(found[response] for response in request.responses)
        return Scores(rewards, (None,) * count, len(found), time.perf_counter() - started)

    def _reward(self, answer: str | None, expected: str) -> float:
        return self.spec.no_answer if answer is None else float(equivalent(answer, expected, self.spec.tolerance))


def extract_answer(text: str) -> str | None:
    """The final answer: the last \\boxed{...}, what stands behind ####, what "the answer is" says, the last number."""
    if (boxed := _boxed(text)) is not None:
        return boxed
    if "####" in text:
        return _marked(text) or None
    if stated := _STATED.findall(text):
        sentence = re.split(r"\.(?:\s|$)|\n", stated[-1].strip())[0].strip().strip("*").strip()
        if sentence:
            return sentence
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def reference_answer(text: str) -> str:
    """The answer of a reference: its last \\boxed{...}, else what stands behind ####, else the whole text.

    A number is never looked for: \\frac{1}{2}, x^2+3 and (3,\\infty) are answers as they stand.
    """
    return _boxed(text) or _marked(text) or text


def _marked(text: str) -> str:
    """What stands behind the last ####, on its line; empty without one."""
    _, mark, rest = text.rpartition("####")
    return rest.strip().split("\n")[0].strip() if mark else ""


def equivalent(answer: str, expected: str, tolerance: float = 1e-6) -> bool:
    """Whether two answers are the same text, up to case and spaces, or the same value."""
    if _folded(answer) == _folded(expected):
        return True
    if len(answer) > MAX_LENGTH or len(expected) > MAX_LENGTH:
        return False
    try:
        return equal(parse(answer), parse(expected), tolerance)
    except NotAlgebraError:
        pass
    numbers = _NUMBER.findall(answer)  # "18 eggs", "$18 per day": one number among words
    if len(numbers) != 1:
        return False
    try:
        return equal(parse(numbers[0]), parse(expected), tolerance)
    except NotAlgebraError:
        return False


def _folded(text: str) -> str:
    text = re.sub(r"[\s$]|(?<!\\)\\[()\[\]]", "", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<!\\)\{([\w,])\}", r"\1", text)  # braces around more say what belongs together
    return text.rstrip(".").casefold()


def _boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} or \\fbox{...}, braces balanced."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start) + 1
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[start:at].strip()
    return None
