"""Whether the final answer of a solution equals the reference, as a reward of 1 or 0 (GSM8K, MATH and their like).

Differs from string matching: 0.5, 1/2, \\frac12 and 50% are the same answer. What is equal is decided by the library
`math-verify` in a process with limits; `_answers.py` has the details.
"""

from __future__ import annotations

import importlib.util
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from aisp_ray.rewards._answers import fold
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.rewards.sandbox.maths import Comparer
from aisp_ray.types import Prompt, Scores

MAX_LENGTH = 400  # characters of an answer; longer ones are compared as texts
_STATED = re.compile(  # possessive repeats: a page of blanks costs no time
    r"\banswers?\**\s*+(?:is|are|was|will be|would be|should be|must be|comes to|equals|:|=|→)\**\s*+(?::\s*+)?"
    r"(?:(?:\\\[|\$\$)\s*+)?(.+)",
    re.IGNORECASE,
)
_REASON = re.compile(r"[,;]?\s+(?:since|because|as|which|where|so that|given that)\s|\.(?:\s|$)|\n")
_HEADING = re.compile(
    r"(?:step|part|case|solution|answer|final|conclusion|explanation|verif\w*|check)\b", re.IGNORECASE
)
_NUMBER = re.compile(
    r"(?<![\w.])-?(?:\d{1,3}(?:(?:,|,?\\[,!;:]|\{,\})\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?(?:\\?%)?|-?(?<![\w.])\.\d+"
)


@dataclass(frozen=True, kw_only=True)
class MathAnswer(RewardSpec):
    """Settings of answer checking. A prompt's reference is `meta["answer"]`."""

    tolerance: float = 1e-6  # relative difference that numbers may have of which one has decimals; others are exact
    percent_as_number: bool = True  # 60% equals 60 as well as 0.6; false: 0.6 alone
    no_answer: float = 0.0  # reward of a response in which no answer is found
    seconds: float = 5.0  # processor seconds to compare one answer; one that takes longer is wrong

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; it is a relative difference, from 0 to below 1")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds}; it must be above 0")

    def check(self, where: str = "reward") -> list[str]:
        if importlib.util.find_spec("math_verify") is None:
            return ["maths answers are compared by math-verify, which is not installed: pip install 'aisp-ray[math]'"]
        return []

    def load(self, device: str) -> MathAnswerScorer:
        return MathAnswerScorer(self)


class MathAnswerScorer(Scorer):
    """`rewards.base.Scorer` by equivalence of answers. Needs no model and no device.

    Raises:
        LoadError: the process that compares answers does not start.
    """

    max_requests = 1

    def __init__(self, spec: MathAnswer):
        self.spec = spec
        self._comparer = Comparer(spec.seconds)
        self._equal = lru_cache(1 << 16)(self._compare)  # a search repeats its answers

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
        found = {response: self._reward(extract_answer(response), expected) for response in set(request.responses)}
        rewards = tuple(found[response] for response in request.responses)
        return Scores(rewards, (None,) * count, seconds=time.perf_counter() - started)

    def _reward(self, answer: str | None, expected: str) -> float:
        return self.spec.no_answer if answer is None else float(self._equal(answer, expected))

    def _compare(self, answer: str, expected: str) -> bool:
        """Whether two answers are the same text, up to case and spaces, or the same value."""
        if len(answer) > MAX_LENGTH or len(expected) > MAX_LENGTH:
            return answer == expected
        if fold(answer) == fold(expected):
            return True
        same = self._comparer.same
        if same(answer, expected, self.spec.tolerance, self.spec.percent_as_number):
            return True
        numbers = _NUMBER.findall(answer) if re.search(r"[a-zA-Z]{2} |\s[a-zA-Z]{2}", answer) else []
        if len(numbers) != 1 or re.search(r"\\|%|percent", answer):  # "he has 18 eggs": one number among words
            return False
        return same(numbers[0], expected, self.spec.tolerance, self.spec.percent_as_number)


def extract_answer(text: str) -> str | None:
    """The final answer: the last \\boxed{...} that is closed, else what is stated last ("the answer is", ####), else
    the last number."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    statements = [(found.start(), _sentence(found[1])) for found in _STATED.finditer(text)]
    statements += [(found.start(), found[1].strip()) for found in re.finditer(r"####(?!#)\s*(.*)", text)]
    kept = [(at, said) for at, said in statements if said and not _HEADING.match(said.strip("*# "))]
    if kept:
        return max(kept)[1]
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def reference_answer(text: str) -> str:
    """The answer of a reference: its last \\boxed{...}, else what stands behind ####, else the whole text.

    A number is never looked for: \\frac{1}{2}, x^2+3 and (3,\\infty) are answers as they stand.
    """
    return last_boxed(text) or _marked(text) or text.strip()


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} or \\fbox{...} whose braces are balanced."""
    stack: list[tuple[int, int] | None] = []
    last = (-1, "")
    for found in re.finditer(r"\\[{}]|(\\f?box(?:ed)?\s*+)?[{}]", text):
        if found[0] in ("\\{", "\\}"):
            continue
        if found[0].endswith("{"):
            stack.append(found.span() if found[1] else None)
        elif stack and (box := stack.pop()):
            last = max(last, (box[0], text[box[1] : found.start()].strip()))
    return last[1] if last[0] >= 0 else None


def _marked(text: str) -> str:
    """What stands behind the last ####, on its line; empty without one."""
    _, mark, rest = text.rpartition("####")
    return rest.strip().split("\n")[0].strip() if mark else ""


def _sentence(text: str) -> str:
    """A stated answer without what follows it: reasons, further sentences, emphasis."""
    said = _REASON.split(text.strip()[: 2 * MAX_LENGTH])[0].strip().strip("*").strip()
    sums = re.fullmatch(r"[-\d\s+*/().,×÷]+=\s*([^=]+)", said)  # 48 + 24 = 72
    return sums[1].strip() if sums else said
