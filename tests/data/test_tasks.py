"""Tasks with verifiers: what is asked, and what the verifier is given."""

import pytest

from aisp_ray import config
from aisp_ray.data.maths import Maths, final_answer
from aisp_ray.data.mbpp import Mbpp, entry_point
from aisp_ray.data.select import DropReport
from aisp_ray.data.stream import rows_locally
from aisp_ray.types import Message

MBPP_ROW = {
    "task_id": 2,
    "prompt": "Write a function to find the shared elements.",
    "code": "import re\ndef helper(x):\n    return x\ndef shared(a, b):\n    return helper(set(a) & set(b))",
    "test_imports": ["import math"],
    "test_list": ["assert set(shared((3, 4), (4, 5))) == set((4,))", "assert shared((), ()) == set()"],
    "test": "def check(a, b):\n    assert a == b\nfor i in range(3):\n    check(shared([i], [i]), {i})",
}


def test_a_task_shows_a_test_and_keeps_the_long_program():
    parsed = Mbpp(path="x").parse(MBPP_ROW)
    assert parsed.text == (
        "Write a function to find the shared elements.\n\nIt has to pass:\n```python\n"
        "assert set(shared((3, 4), (4, 5))) == set((4,))\n```\n\n"
        "Answer with one Python code block that defines the function."
    )
    assert parsed.meta == {"tests": [MBPP_ROW["test"]], "task_id": 2, "entry_point": "shared"}
    assert parsed.messages == (Message("user", parsed.text),)


def test_the_base_tests_are_one_each_with_their_imports():
    parsed = Mbpp(path="x", tests="base", show_tests=0, instruction="").parse(MBPP_ROW)
    assert parsed.text == MBPP_ROW["prompt"]
    assert parsed.meta["tests"] == [f"import math\n{test}" for test in MBPP_ROW["test_list"]]
    old = {"text": "Do it.", "test_list": ["assert f(1)"], "test_setup_code": "class A: pass", "code": "def f(x): ..."}
    assert Mbpp(path="x", tests="base").parse(old).meta["tests"] == ["class A: pass\nassert f(1)"]


def test_the_entry_point_is_the_called_function_that_the_reference_defines():
    assert entry_point(["assert math.isclose(area(2), 3)"], "def area(r):\n    return r") == "area"
    assert entry_point(["assert sorted(f(2)) == [1]"], None) == "f"
    assert entry_point(["broken ("], "def f(: pass") is None


def test_tasks_without_text_or_tests_are_errors():
    assert (
        "has no tests in column 'test' (data.tests=plus)"
        in Mbpp(path="x").parse({"prompt": "p", "test_list": []}).error
    )
    assert "has no tests in column 'test_list'" in Mbpp(path="x", tests="base").parse({"prompt": "p"}).error
    assert "empty" in Mbpp(path="x").parse({"prompt": " "}).error
    with pytest.raises(ValueError, match=r"plus .* or base"):
        Mbpp(path="x", tests="all")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("She has 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### -12,345.5", "-12345.5"),
        ("#### (3, 4)", "(3, 4)"),
        ("#### 1, 2", "1, 2"),
        ("#### 1,234, 5,678", "1,234, 5,678"),
        (r"So $x = \boxed{\frac{1}{2}}$ and \boxed{3}.", "3"),
        (r"Thus \boxed{\left\{\frac{a}{b}\right\}}.", r"\left\{\frac{a}{b}\right\}"),
        (r"\boxed{never closed", r"\boxed{never closed"),
        (" 42 ", "42"),
        ("", ""),
    ],
)
def test_the_answer_is_what_the_solution_ends_with(solution, answer):
    assert final_answer(solution) == answer


def test_a_problem_is_its_question_with_the_instruction():
    parsed = Maths(path="x", instruction="Go.").parse({"question": " 1 + 1? ", "answer": "2\n#### 2"})
    assert parsed.text == "1 + 1?\n\nGo."
    assert parsed.meta == {"answer": "2", "solution": "2\n#### 2"}
    numbers = Maths(path="x", question_column="problem", answer_column="n").parse({"problem": "p", "n": 5})
    assert numbers.meta["answer"] == "5"


def test_problems_without_question_or_answer_are_errors():
    assert "no answer in column 'answer'" in Maths(path="x").parse({"question": "q"}).error
    assert "no column 'question'" in Maths(path="x").parse({"problem": "q"}).error


def scored(data, reward, reply):
    """Rewards of one reply to each embedded problem."""
    from aisp_ray.rewards.base import ScoreRequest

    spec = config.build(config.read_choice("data", data), "data")
    assert spec.check() == []
    report = DropReport()
    prompts = list(rows_locally(spec, None, report))
    assert report.num_errors == 0
    assert not report.rules
    scorer = config.build(config.read_choice("reward", reward), "reward").load("cpu")
    requests = [ScoreRequest(prompt, tuple(reply(prompt))) for prompt in prompts]
    return [scores.rewards for scores in scorer.score(requests)]


def test_the_embedded_word_problems_tell_right_from_wrong():
    replies = lambda prompt: [f"So the answer is {prompt.meta['answer']}.", "The answer is 987654."]  # noqa: E731
    rewards = scored("demo_maths", "math_answer", replies)
    assert rewards == [(1.0, 0.0)] * 16


def test_the_embedded_python_tasks_are_solved_by_their_references_and_by_nothing_else():
    import json

    from aisp_ray.data import maths

    path = maths.__file__.replace("maths.py", "problems/code.jsonl")
    with open(path, encoding="utf-8") as stream:
        codes = {row["task_id"]: row["code"] for row in map(json.loads, stream)}

    def replies(prompt):
        code, name = codes[prompt.meta["task_id"]], prompt.meta["entry_point"]
        return [f"Here:\n```python\n{code}```", f"```python\ndef {name}(*given):\n    return given\n```"]

    try:
        rewards = scored("demo_code", "code_tests", replies)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert rewards == [(1.0, 0.0)] * 12
