"""A language model behind an OpenAI-compatible endpoint as a judge: rates a response, or compares it with another one.

A comparison is asked in both orders, because judges prefer a place (Zheng et al., arXiv 2306.05685). An answer that
cannot be read is an error of that response and counted apart; it is never a tie.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aisp_ray.errors import is_away
from aisp_ray.lm.endpoint import Endpoint, ServedModel
from aisp_ray.rewards._points import read_points, schema, text_of
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.rng import derive_seed
from aisp_ray.types import Message, Prompt, Scores

RATING = """You grade the last answer of an assistant. Consider whether it is helpful, correct, harmless and as \
detailed as the question needs. An answer that stops in mid-sentence is not worse for that alone."""
COMPARISON = """You grade two answers, A and B, to the same question. Consider for each whether it is helpful, \
correct, harmless and as detailed as the question needs. An answer that stops in mid-sentence is not worse for that \
alone, and the order of the answers means nothing."""
FIRST_LINE = {
    1: """Write one number from 1 (useless) to 10 (could not be better) on the first line, and a short reason \
below it.""",
    2: """Write two numbers from 1 (useless) to 10 (could not be better) on the first line, first for A, then for B, \
separated by a space, and a short reason below them.""",
}
AS_JSON = {
    1: """Answer in JSON: "rating", a number from 1 (useless) to 10 (could not be better), then \
"reason", a short one.""",
    2: """Answer in JSON: "rating_a" and "rating_b", numbers from 1 (useless) to 10 (could not be better), then \
"reason", a short one.""",
}
_Answer = tuple[float, ...] | str  # points, or why there are none


@dataclass(frozen=True, kw_only=True)
class Judge(ServedModel, RewardSpec):
    """Settings of a judge. The official client of the `openai` package speaks to the endpoint."""

    compare_with: str | None = None  # key of the prompt's meta with another answer, e.g. preferred; null: rate alone
    reward: str = "margin"  # of comparisons: margin (points ahead of the other) | win (1, 0.5 for a tie, 0)
    both_orders: bool = True  # comparisons are asked twice with places changed, and averaged; false: one drawn order
    instructions: str | None = None  # what the judge is told, in place of our text; it must ask for the same numbers
    structured: bool | None = None  # ratings as JSON by a schema; null: where the endpoint takes it
    seed: int | None = 0  # sent along, and draws the order; null sends none
    temperature: float | None = 0.0  # of the judge; null leaves it to the endpoint
    max_tokens: int | None = 512  # of a judgement; null leaves it to the endpoint
    prompt_price: float | None = None  # US dollars for a million prompt tokens, for the cost ledger; null: unknown
    completion_price: float | None = None  # US dollars for a million generated tokens; null: unknown

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward not in ("margin", "win"):
            raise ValueError(f"reward is {self.reward!r}; it is margin or win")
        if self.compare_with is None and self.reward != "margin":
            raise ValueError("reward=win compares with another answer; set compare_with, e.g. compare_with=preferred")
        self.check_served()

    def check(self, where: str = "reward") -> list[str]:
        return self.unreachable("a judge", where)

    def load(self, device: str) -> JudgeScorer:
        return JudgeScorer(self)


@dataclass(frozen=True, slots=True)
class _Case:
    """One request to the endpoint."""

    prompt: Prompt
    response: str
    other: str | None
    response_first: bool = True

    @property
    def count(self) -> int:
        """Ratings asked for: of the response, and of the other answer."""
        return 1 if self.other is None else 2

    @property
    def key(self) -> Hashable:
        """All that the judge reads."""
        return self.prompt.text, self.prompt.messages, self.response, self.other, self.response_first


class JudgeScorer(Scorer):
    """`rewards.base.Scorer` by judgement. Needs no device."""

    def __init__(self, spec: Judge):
        self.spec = spec
        self.structured = spec.instructions is None if spec.structured is None else spec.structured
        self.endpoint = Endpoint(spec, "judge")

    def describe(self, prompt: Prompt) -> str:
        other = self._other(prompt)
        return "\n\n".join(turn["content"] for turn in self._dialogue(_Case(prompt, "<response>", other)))

    def stats(self) -> dict[str, float]:
        """The ledger: calls, retries, failures, unreadable judgements, tokens, and dollars where prices are known."""
        names = ("calls", "retries", "failed_calls", "parse_failures", "prompt_tokens", "completion_tokens")
        stats = self.endpoint.counts(names)
        prices = (self.spec.prompt_price, self.spec.completion_price)
        tokens = (stats["judge_prompt_tokens"], stats["judge_completion_tokens"])
        costs = [
            math.nan if price is None else price * count / 1e6 for price, count in zip(prices, tokens, strict=True)
        ]
        stats["judge_cost_usd"] = sum(costs)
        return stats

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        started = time.perf_counter()
        cases = {
            (at, response): self._cases(request.prompt, response)
            for at, request in enumerate(requests)
            for response in request.responses
        }
        asks = {case.key: partial(self._ask, case) for several in cases.values() for case in several}
        answers = self.endpoint.start(asks).answers()
        values = {key: self._value([answers[case.key] for case in several]) for key, several in cases.items()}
        seconds = (time.perf_counter() - started) / max(1, len(requests))
        return [
            self._scores(request, [values[at, response] for response in request.responses], seconds)
            for at, request in enumerate(requests)
        ]

    def _scores(self, request: ScoreRequest, values: list[float | str], seconds: float) -> Scores:
        rewards = tuple(math.nan if isinstance(value, str) else value for value in values)
        errors = tuple(
            f"prompt {request.prompt.prompt_id}, particle {particle}: {value}" if isinstance(value, str) else None
            for particle, value in enumerate(values)
        )
        return Scores(rewards, errors, seconds=seconds)

    def _other(self, prompt: Prompt) -> str | None:
        return None if self.spec.compare_with is None else prompt.meta.get(self.spec.compare_with)

    def _cases(self, prompt: Prompt, response: str) -> list[_Case]:
        """What to ask for a response; nothing where there is no other answer to compare with."""
        if self.spec.compare_with is None:
            return [_Case(prompt, response, None)]
        if not (other := self._other(prompt)):
            return []
        first = derive_seed(self.spec.seed or 0, prompt.prompt_id, response) % 2 == 0
        orders = (True, False) if self.spec.both_orders else (first,)
        return [_Case(prompt, response, other, order) for order in orders]

    def _value(self, answers: list[_Answer]) -> float | str:
        """The reward, or a text that says why there is none."""
        if not answers:
            return f'the prompt has no meta["{self.spec.compare_with}"] to compare with'
        points: list[tuple[float, ...]] = []
        for answer in answers:
            if isinstance(answer, str):
                return answer
            points.append(answer)
        if self.spec.compare_with is None:
            return points[0][0]
        if self.spec.reward == "margin":
            return sum(own - other for own, other in points) / len(points)
        return sum(0.5 + 0.5 * ((own > other) - (own < other)) for own, other in points) / len(points)

    def _ask(self, case: _Case) -> _Answer:
        """(points,) or (own points, the other's), or what went wrong. Raises where the endpoint is away."""
        structured = self.structured
        try:
            raw = self._send(case, structured)
            completion = raw.parse()
        except Exception as error:  # one judgement that fails is one reward that is unknown
            if structured and self.spec.structured is None and _refuses_schema(error):
                self.structured = False  # from here on as text
                return self._ask(case)
            self.endpoint.count(failed_calls=1)
            if is_away(error):
                raise
            return self.endpoint.redacted(f"the judge could not be asked: {type(error).__name__}: {error}")
        usage = completion.usage
        self.endpoint.count(
            calls=1,
            retries=raw.retries_taken,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )
        choice = completion.choices[0] if completion.choices else None
        text = text_of(choice.message.content) if choice is not None and choice.message is not None else ""
        points = read_points(text, case.count)
        if points is None:
            self.endpoint.count(parse_failures=1)
            cut = choice is not None and choice.finish_reason == "length"
            why = f" (cut off at max_tokens={self.spec.max_tokens})" if cut else ""
            return self.endpoint.redacted(f"the judge's answer holds no points{why}: {text[:80]!r}")
        return points if case.response_first else points[::-1]

    def _send(self, case: _Case, structured: bool) -> Any:
        optional = {
            "seed": self.spec.seed,
            "temperature": self.spec.temperature,
            "max_tokens": self.spec.max_tokens,
            "response_format": schema(case.count) if structured else None,
        }
        return self.endpoint.client.chat.completions.with_raw_response.create(
            model=self.spec.model,
            messages=self._dialogue(case),
            extra_body=self.spec.extra or None,
            **{name: value for name, value in optional.items() if value is not None},
        )

    def _dialogue(self, case: _Case) -> list[dict[str, str]]:
        turns = case.prompt.messages or (Message("user", case.prompt.text),)
        question = "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns) if len(turns) > 1 else turns[0].content
        if case.other is None:
            answers = [("ANSWER", case.response)]
        else:
            pair = (case.response, case.other) if case.response_first else (case.other, case.response)
            answers = [("ANSWER A", pair[0]), ("ANSWER B", pair[1])]
        parts = [("QUESTION", question), *answers]
        shape = (AS_JSON if self.structured else FIRST_LINE)[case.count]
        system = self.spec.instructions or f"{RATING if case.other is None else COMPARISON}\n\n{shape}"
        text = "\n\n".join(f"<<< {name} >>>\n{content}\n<<< END OF {name} >>>" for name, content in parts)
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def _refuses_schema(error: Exception) -> bool:
    """Whether an endpoint says that it takes no `response_format` of this kind."""
    refused = getattr(error, "status_code", None) in (400, 404, 415, 422, 500, 501)
    return refused and re.search(r"response_format|json_?schema|guided|structured|schema", str(error), re.I) is not None
