"""Maths answers: what is extracted, what is equal, and that no answer keeps the grader busy or runs code."""

import math
import re
import time

import pytest

from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.math_answer import MathAnswer, equivalent, extract_answer
from aisp_ray.types import Prompt

EQUAL = [
    ("0.5", "\\frac12"),
    ("50\\%", "1/2"),
    ("1,234", "1234"),
    ("\\$1,000", "1000"),
    ("$18 per day", "18"),
    ("18 eggs", "18"),
    ("x=5", "5"),
    ("(1, 2)", "(1,2)"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("2, 1", "1,2"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
    ("90^\\circ", "90"),
    ("3\\frac{1}{2}", "3.5"),
    ("\\text{Monday}", "monday"),
    ("10 cm", "10"),
    ("\\infty", "oo"),
    ("3!", "6"),
    ("\\left(3,\\frac{\\pi}{2}\\right)", "(3, pi/2)"),
    ("2^{10}", "1024"),
    ("e^{i\\pi}", "-1"),
    ("007", "7"),
    ("\\sqrt[3]{8}", "2"),
    ("\\sin(x)^2+\\cos(x)^2", "1"),
    ("\\(\\frac{3}{4}\\)", "0.75"),
    ("\\[ x = \\frac{3}{4}. \\]", "\\frac{3}{4}"),
    ("$\\frac{3}{4}.$", "\\frac{3}{4}"),
    ("\\(\\text{Monday}\\)", "Monday"),
    ("4210_{5}", "4210_5"),
]
DIFFERENT = [
    ("[1,2)", "(1,2)"),
    ("(1,2)", "(2,1)"),
    ("1, 2, 2", "1, 2"),
    ("Tuesday", "Monday"),
    ("-5", "5"),
    ("2x", "x"),
    ("A", "B"),
    ("0.333", "1/3"),
    ("3 or 4", "3"),
    ("1/0", "1"),
    ("", "1"),
    ("x+y", "x-y"),
    ("42105", "4210_5"),
    ("4210", "4210_{5}"),
    ("\\frac{12}{3}", "\\frac{1}{23}"),
]
FORMULAS = [
    "\\frac{1}{2}",
    "3\\sqrt{13}",
    "x^2+3",
    "6-5i",
    "10\\%",
    "(3,\\infty)",
    "1,3",
    "4210_5",
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 5 \\end{pmatrix}",
]
HOSTILE = [
    "9^{9^{9^9}}",
    "9**9**9**9",
    "e^{e^{e^{e^x}}}",
    "exp(exp(exp(1000)))",
    "factorial(factorial(100))",
    "(10^1000)^1000",
    "1e400000",
    "__import__('os').abort()",
    "(lambda: 0)()",
    "(" * 5000,
    "\\frac{" * 200,
    "\\sqrt{" * 60 + "2" + "}" * 60,
    "x" * 10**6,
]


@pytest.mark.parametrize(("answer", "expected"), EQUAL)
def test_equal_values_are_equal(answer, expected):
    assert equivalent(answer, expected)
    assert equivalent(expected, answer) or " " in answer  # words stand in the response only


@pytest.mark.parametrize(("answer", "expected"), DIFFERENT)
def test_different_values_are_different(answer, expected):
    assert not equivalent(answer, expected)


@pytest.mark.parametrize("answer", HOSTILE)
def test_no_answer_keeps_the_grader_busy(answer):
    started = time.process_time()
    assert not equivalent(answer, "3")
    assert not equivalent(answer, "x+1")
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}} and not \\boxed{3", "\\frac{1}{2}"),
        ("first \\boxed{1}, then \\boxed{2}", "2"),
        ("12 + 30 = 42\n#### 42\n", "42"),
        ("The answer is 42. I am sure of 3 things.", "42"),
        ("The final answer is: 3.5\nBye 7", "3.5"),
        ("We get 12 and then 1,200", "1,200"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_answer_is_found(text, answer):
    if "not \\boxed{3" in text:
        text = text.replace(" and not \\boxed{3", "")
    assert extract_answer(text) == answer


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_reference_is_its_formula_and_not_its_last_number(formula):
    scorer = MathAnswer().load("cpu")
    right = [f"So \\boxed{{{formula}}}", f"The answer is ${formula}$.", f"The answer is \\({formula}\\)."]
    right.append(f"The answer is\n\\[\n{formula}\n\\]")
    number = re.findall(r"\d+", formula)[-1]
    responses = (*right, f"The answer is {number}.", f"\\boxed{{{number}}}")
    for reference in (formula, f"2 + 2 = 4, so \\boxed{{{formula}}}", f"2 + 2 = 4\n#### {formula}"):
        prompt = Prompt("m/0", 0, "math", "?", meta={"answer": reference})
        assert scorer.score([ScoreRequest(prompt, responses)])[0].rewards == (1.0,) * len(right) + (0.0, 0.0)


def test_an_open_box_is_no_answer_by_itself():
    assert extract_answer("It is 4, \\boxed{3") == "3"  # the last number


def test_the_reward_is_one_or_zero():
    scorer = MathAnswer().load("cpu")
    prompt = Prompt("m/0", 0, "gsm8k", "?", meta={"answer": "20 - 2 = 18\n#### 18"})
    responses = ("The answer is $18.", "\\boxed{36/2}", "#### 17", "I do not know", "The answer is $18.")
    scores = scorer.score([ScoreRequest(prompt, responses)])[0]
    assert scores.rewards == (1.0, 1.0, 0.0, 0.0, 1.0)
    assert scores.num_calls == 4
    assert MathAnswer(no_answer=-1.0).load("cpu").score([ScoreRequest(prompt, ("Hm",))])[0].rewards == (-1.0,)


def test_a_numeric_reference_and_a_missing_one():
    scorer = MathAnswer().load("cpu")
    number = Prompt("m/1", 0, "gsm8k", "?", meta={"answer": 0})
    assert scorer.score([ScoreRequest(number, ("It is 0.0", "1"))])[0].rewards == (1.0, 0.0)
    scores = scorer.score([ScoreRequest(Prompt("m/2", 0, "gsm8k", "?"), ("1",))])[0]
    assert math.isnan(scores.rewards[0])
    assert "m/2" in scores.errors[0]
