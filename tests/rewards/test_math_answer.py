"""Maths answers: what is extracted, what is equal, and that no answer keeps the grader busy."""

import math
import re
import time
from pathlib import Path

import pytest

from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.math_answer import MathAnswer, extract_answer, last_boxed
from aisp_ray.types import Prompt

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
    "(((2*sqrt(3))^999)^999)^999",
    "sin(exp(1000)^1000)",
    "1e400000",
    "\\binom{10^9}{10^8}",
    "__import__('os').abort()",
    "(" * 399,
    "\\frac{" * 60,
    "x" * 10**6,
]


def pairs():
    """(kind, answer, reference, whether they are equal) of math_pairs.txt."""
    kind = ""
    for line in Path(__file__).with_name("math_pairs.txt").read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"\[([a-z ,]+)\]", line):
            kind = found[1]
        elif line and not line.startswith("#"):
            *texts, verdict = (" " + line).split(" | ")
            half = len(texts) // 2  # an absolute value may hold the separator
            yield kind, " | ".join(texts[:half])[1:], " | ".join(texts[half:]), verdict == "="


PAIRS = list(pairs())


@pytest.fixture(scope="module")
def scorer():
    return MathAnswer(seconds=1.0).load("cpu")


@pytest.mark.parametrize("kind", sorted({kind for kind, *_ in PAIRS}))
def test_answers_of_public_styles_are_told_apart(scorer, kind):
    wrong = [
        (answer, reference, "equal" if equal else "different")
        for name, answer, reference, equal in PAIRS
        if name == kind and scorer._compare(answer, reference) != equal
    ]
    assert wrong == []


def test_there_are_many_pairs_of_both_verdicts():
    assert len(PAIRS) > 300
    assert sum(not equal for *_, equal in PAIRS) > 100


def test_no_answer_keeps_the_grader_busy():
    scorer = MathAnswer(seconds=0.25).load("cpu")
    started = time.process_time()
    for answer in HOSTILE:
        assert not scorer._compare(answer, "3"), answer
    assert scorer._compare("1/2", "0.5")  # and the grader is still there
    assert time.process_time() - started < 5


def test_a_page_of_blanks_or_of_open_boxes_is_searched_at_once():
    started = time.process_time()
    for text in ("the answer is" + " \n" * 100_000, "\\boxed{" * 50_000, "answer is 1" + " " * 200_000, "$" * 10**6):
        extract_answer(text)
    assert time.process_time() - started < 5


def test_what_is_infinite_equals_only_the_same_infinity(scorer):
    for answer in ("\\infty", "-\\infty", "10^{400}", "1/0", "1" * 340, "\\tan(\\pi/2)", "\\log 0", "\\frac{0}{0}"):
        for reference in ("5", "\\infty", "-\\infty", "0", "2" * 340, "(3,\\infty)"):
            assert scorer._compare(answer, reference) == (answer == reference), (answer, reference)
    assert scorer._compare("-oo", "-\\infty")


def test_numbers_with_decimals_may_differ_by_the_tolerance_and_others_may_not(scorer):
    assert scorer._compare("12.566371", "4\\pi")
    assert scorer._compare("1e-9", "1.0000001e-9")
    assert not scorer._compare("1e-9", "1.1e-9")
    assert not scorer._compare("2^{70}", "2^{70}+1")
    assert not scorer._compare("\\sqrt2+10^{-15}", "\\sqrt2")
    strict = MathAnswer(tolerance=0)
    assert not strict.load("cpu")._compare("0.333333333", "1/3")


def test_a_percentage_is_its_number_too_unless_told_otherwise(scorer):
    strict = MathAnswer(percent_as_number=False).load("cpu")
    for answer, reference in (("60%", "60"), ("60", "60\\%"), ("12.5 percent", "\\frac{25}{2}")):
        assert scorer._compare(answer, reference)
        assert not strict._compare(answer, reference)
    for answer, reference in (("60%", "0.6"), ("60%", "60\\%"), ("\\frac35", "60\\%")):
        assert scorer._compare(answer, reference)
        assert strict._compare(answer, reference)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("first \\boxed{1}, then \\boxed{2}", "2"),
        ("\\boxed{12}, or was it \\boxed{3", "12"),
        ("It is 4, \\boxed{3", "3"),
        ("\\boxed {7} and \\fbox{8}", "8"),
        ("\\boxed{\\left\\{1,2\\right\\}}", "\\left\\{1,2\\right\\}"),
        ("12 + 30 = 42\n#### 42\n", "42"),
        ("#### Step 1\nWe add 3 and 4.\n\nThe final answer is 7.", "7"),
        ("#### Step 1: add\n3 + 4\n#### Step 2: multiply\nThis gives 14", "14"),
        ("#### Final answer\nThe answer is 9", "9"),
        ("The answer is 3.\n#### 4", "4"),
        ("The answer is 42. I am sure of 3 things.", "42"),
        ("The answer would be 5. There are 7 days in a week.", "5"),
        ("The answer is 29 dollars, since 3+26=29.", "29 dollars"),
        ("The answer is 48 + 24 = 72.", "72"),
        ("So 48+24=72", "72"),
        ("**Answer:** 42", "42"),
        ("The answer is **42**.", "42"),
        ("The final answer is: 3.5\nBye 7", "3.5"),
        ("We get 12 and then 1,200", "1,200"),
        ("In all 10,\\!080 of them", "10,\\!080"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_answer_is_found(text, answer):
    assert extract_answer(text) == answer


def test_a_box_counts_once_it_is_closed():
    assert last_boxed("\\boxed{1} \\boxed{\\boxed{2}} \\boxed{3") == "2"
    assert last_boxed("a } b \\boxed{x_{1}} {") == "x_{1}"
    assert last_boxed("\\boxed{") is None


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_reference_is_its_formula_and_not_its_last_number(scorer, formula):
    right = [f"So \\boxed{{{formula}}}", f"The answer is ${formula}$.", f"The answer is \\({formula}\\)."]
    right.append(f"The answer is\n\\[\n{formula}\n\\]")
    number = re.findall(r"\d+", formula)[-1]
    wrong = [] if formula == "10\\%" else [f"The answer is {number}.", f"\\boxed{{{number}}}"]
    for reference in (formula, f"2 + 2 = 4, so \\boxed{{{formula}}}", f"2 + 2 = 4\n#### {formula}"):
        prompt = Prompt("m/0", 0, "math", "?", meta={"answer": reference})
        scores = scorer.score([ScoreRequest(prompt, (*right, *wrong))])[0]
        assert scores.rewards == (1.0,) * len(right) + (0.0,) * len(wrong)


def test_the_reward_is_one_or_zero(scorer):
    prompt = Prompt("m/0", 0, "gsm8k", "?", meta={"answer": "20 - 2 = 18\n#### 18"})
    responses = ("The answer is $18.", "\\boxed{36/2}", "#### 17", "I do not know", "The answer is $18.")
    scores = scorer.score([ScoreRequest(prompt, responses)])[0]
    assert scores.rewards == (1.0, 1.0, 0.0, 0.0, 1.0)
    assert MathAnswer(no_answer=-1.0).load("cpu").score([ScoreRequest(prompt, ("Hm",))])[0].rewards == (-1.0,)


def test_a_numeric_reference_and_a_missing_one(scorer):
    number = Prompt("m/1", 0, "gsm8k", "?", meta={"answer": 0})
    assert scorer.score([ScoreRequest(number, ("It is 0.0", "1"))])[0].rewards == (1.0, 0.0)
    scores = scorer.score([ScoreRequest(Prompt("m/2", 0, "gsm8k", "?"), ("1",))])[0]
    assert math.isnan(scores.rewards[0])
    assert "m/2" in scores.errors[0]


def test_a_grader_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr("aisp_ray.rewards.sandbox.maths.CHILD", "aisp_ray.no_such")
    with pytest.raises(RuntimeError, match=r"No module named aisp_ray\.no_such"):
        MathAnswer().load("cpu")
