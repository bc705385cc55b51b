r"""Mathematical problems with a final answer: GSM8K (Cobbe et al., 2021, 2110.14168), MATH (Hendrycks et al., 2021).

The answer goes to `meta["answer"]` for `reward=math_answer`: the last \boxed{...}, else what stands behind `####`,
else the whole column. Differs from the papers: zero examples, and the wording around the problem is ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aisp_ray.data._row import text_of
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.rewards.math_answer import reference_answer
from aisp_ray.types import Message

_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Maths(DataSpec):
    """Settings of problems with a reference answer."""

    question_column: str = "question"  # column of the problem
    answer_column: str = "answer"  # column of the reference answer, or of a solution that ends with it
    instruction: str = "Reason step by step, then end with: The answer is"  # put behind the problem

    own_name = "maths"

    @property
    def wanted_columns(self) -> tuple[str, ...]:
        return (self.question_column,)

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        question, error = text_of(row, self.question_column)
        if error:
            return Parsed(error=error)
        solution = row.get(self.answer_column)
        if isinstance(solution, int | float) and not isinstance(solution, bool):
            solution = str(solution)
        answer = final_answer(solution) if isinstance(solution, str) else ""
        if not answer:
            return Parsed(text=question, error=f"the problem has no answer in column {self.answer_column!r}")
        text = f"{question.strip()}\n\n{self.instruction}" if self.instruction else question.strip()
        return Parsed(text, (Message("user", text),), {"answer": answer, "solution": solution})


def final_answer(solution: str) -> str:
    """The answer at the end of a solution, one number without its thousands separators; empty if there is none."""
    answer = reference_answer(solution)
    return answer.replace(",", "") if _THOUSANDS.fullmatch(answer) else answer
