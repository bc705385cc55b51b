"""Python functions and classes as rewards."""

import itertools
import math
import sys
from urllib.error import HTTPError, URLError

import numpy
import pytest
import torch

from aisp_ray.cluster.failures import sort_load_error
from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.callable import CallableReward, FunctionReward
from aisp_ray.types import Prompt

PROMPT = Prompt("p/3", 0, "d", "Hi.")
HERE = "test_callable"


def length(prompt, responses, scale=1.0):
    return [scale * len(response) for response in responses]


def fussy(prompt, responses):
    if any("bad" in response for response in responses):
        raise KeyError("bad")
    return [1.0] * len(responses)


def odd(prompt, responses):
    return [None if response == "none" else float(response) for response in responses]


def constant(prompt, responses, value):
    constant.calls += 1
    return value


constant.calls = 0


def lazy(prompt, responses):
    yield from map(len, responses)


def endless(prompt, responses):
    return itertools.repeat(1.0)


async def later(prompt, responses):
    return [1.0] * len(responses)


class Later:
    async def __call__(self, prompt, responses):
        return [1.0] * len(responses)


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no text today")


class NoNumber:
    def __float__(self):
        raise RuntimeError("no number today")


def one_parameter(responses):
    return [1.0] * len(responses)


def away(prompt, responses, error):
    away.calls += 1
    raise error


away.calls = 0


class Silent:
    pass


class Counting:
    def __init__(self, start):
        self.calls = start

    def __call__(self, prompt, responses):
        self.calls += 1
        return [float(self.calls)] * len(responses)


def score(target, *responses, **settings):
    spec = CallableReward(target=f"{HERE}:{target}", **settings)
    assert spec.check() == []
    return spec.load("cpu").score([ScoreRequest(PROMPT, responses)])[0]


def test_a_function_scores_a_batch_and_each_text_once():
    scores = score("length", "ab", "abc", "ab", arguments={"scale": 2})
    assert scores.rewards == (4.0, 6.0, 4.0)
    assert scores.errors == (None,) * 3


def test_a_class_is_made_once():
    scorer = CallableReward(target=f"{HERE}:Counting", arguments={"start": 10}).load("cpu")
    requests = [ScoreRequest(PROMPT, ("a",)), ScoreRequest(PROMPT, ("b",))]
    assert [scores.rewards for scores in scorer.score(requests)] == [(11.0,), (12.0,)]


class Unmakeable:
    def __init__(self, error):
        raise error

    def __call__(self, prompt, responses):
        return []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(0), "SystemExit: 0 (test_callable.py:"),
        (SystemExit("no licence"), "SystemExit: no licence"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (AssertionError("n\nmust be above 3"), "AssertionError: n must be above 3 ("),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_class_that_cannot_be_made_is_one_sentence(error, text):
    spec = CallableReward(target=f"{__name__}:Unmakeable", arguments={"error": error})
    with pytest.raises(ValueError, match=r"^target=[^\n]*$") as raised:
        spec.load("cpu")
    assert f"Unmakeable fails when it is made: {text}" in str(raised.value)
    assert sort_load_error(raised.value).kind == "settings"
    assert str(sort_load_error(raised.value)) == str(raised.value)  # no traceback


@pytest.mark.parametrize("error", [MemoryError("no room"), ConnectionError("no route"), RuntimeError("device busy")])
def test_a_class_that_another_try_may_make_raises_what_it_raised(error):
    with pytest.raises(type(error), match=str(error)):
        CallableReward(target=f"{__name__}:Unmakeable", arguments={"error": error}).load("cpu")


def test_an_exception_costs_the_responses_at_fault_only():
    scores = score("fussy", "good", "bad", "fine")
    assert scores.rewards[0] == scores.rewards[2] == 1.0
    assert math.isnan(scores.rewards[1])
    assert scores.errors[1] == "prompt p/3, particle 1: test_callable:fussy failed with KeyError: 'bad'"


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError("refused"), URLError("no route"), HTTPError("http://x", 503, "busy", {}, None)],
    ids=lambda error: type(error).__name__,
)
def test_a_service_that_is_away_costs_no_reward(error):
    away.calls = 0
    with pytest.raises(type(error)):
        score("away", "a", "b", arguments={"error": error})
    assert away.calls == 1  # not once more for each response


def test_a_request_that_a_service_refuses_is_the_responses_error():
    scores = score("away", "a", arguments={"error": HTTPError("http://x", 404, "no such page", {}, None)})
    assert "HTTPError: HTTP Error 404" in scores.errors[0]


def test_what_is_not_finite_is_nan_with_a_text():
    scores = score("odd", "1", "inf", "none", "-2")
    assert scores.rewards[::3] == (1.0, -2.0)
    assert all(map(math.isnan, scores.rewards[1:3]))
    assert "returned inf" in scores.errors[1]
    assert "returned nan" in scores.errors[2]


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ([0.5], "returned 1 rewards for 3 responses"),
        ([0.5, 1], "returned 2 rewards for 3 responses"),
        ([1, 2, 3, 4], "returned 4 rewards for 3 responses"),
        ([], "returned 0 rewards for 3 responses"),
        (0.5, "returned a single float for 3 responses"),
        (None, "returned a single NoneType for 3 responses"),
        ("abc", "returned a single str for 3 responses"),
        ({"a": 1, "b": 2, "c": 3}, "returned a single dict for 3 responses"),
        (numpy.float32(2), "returned a single float32 for 3 responses"),
        (numpy.array(2.0), "returned a single ndarray for 3 responses"),
        (torch.tensor(2.0), "returned a single Tensor for 3 responses"),
        (numpy.ones((2, 3)), "returned 2 rewards for 3 responses"),
    ],
)
def test_another_number_of_rewards_is_refused_with_both_lengths(returned, text):
    constant.calls = 0
    scores = score("constant", "a", "b", "c", arguments={"value": returned})
    assert all(map(math.isnan, scores.rewards))
    assert all(text in error for error in scores.errors)
    assert constant.calls == 1  # and not once more for each response


def test_arrays_and_generators_are_lists_of_rewards():
    assert score("constant", "a", "b", arguments={"value": numpy.array([1, 2])}).rewards == (1.0, 2.0)
    assert score("constant", "a", "b", arguments={"value": (1, True)}).rewards == (1.0, 1.0)
    assert score("lazy", "a", "bc").rewards == (1.0, 2.0)


def test_rewards_without_end_are_read_no_further_than_needed():
    scores = score("endless", "a", "b")
    assert "returned 3 or more rewards for 2 responses" in scores.errors[0]


@pytest.mark.parametrize("value", ["good", NoNumber(), 10**400, torch.ones(2), [1.0]])
def test_a_value_that_is_no_number_costs_its_own_response(value):
    scores = score("constant", "a", "b", arguments={"value": [1.0, value]})
    assert scores.rewards[0] == 1.0
    assert f"returned a {type(value).__name__} that is no number" in scores.errors[1]


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), SystemExit(503), KeyboardInterrupt(), GeneratorExit(), BaseException("odd"), MuteError()],
)
def test_what_would_end_the_process_is_an_error_of_the_response(error):
    scores = score("away", "a", "b", arguments={"error": error})
    assert all(map(math.isnan, scores.rewards))
    assert type(error).__name__ in scores.errors[0]


def test_the_first_traceback_comes_with_the_rewards():
    scores = score("fussy", "good", "bad", "bad too")
    assert scores.traceback.startswith("Traceback (most recent call last)")
    assert 'raise KeyError("bad")' in scores.traceback
    assert scores.traceback.count("Traceback") == 1
    assert score("length", "a").traceback is None


def test_an_error_is_short_and_can_be_written():
    scores = score("away", "a", arguments={"error": ValueError("\ud800" + "x" * 5_000_000)})
    for text, most in ((scores.errors[0], 9000), (scores.traceback, 2000)):
        assert len(text.encode()) < most
        assert "ValueError: \ufffdxxx" in text


def test_a_target_may_be_a_file_and_import_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "words_to_count.py").write_text("WORD = 'please'\n")
    source = (
        "from words_to_count import WORD\ndef polite(prompt, texts):\n    return [text.count(WORD) for text in texts]\n"
    )
    (tmp_path / "my_scores.py").write_text(source)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    spec = CallableReward(target=f"{tmp_path}/my_scores.py:polite")
    assert spec.check() == []
    assert spec.load("cpu").score([ScoreRequest(PROMPT, ("please", "now"))])[0].rewards == (1.0, 0.0)
    monkeypatch.chdir(tmp_path)
    assert CallableReward(target="my_scores.py:polite").check() == []
    assert CallableReward(target="my_scores:polite").check() == []
    assert "has no 'rude'" in CallableReward(target="my_scores.py:rude").check()[0]
    assert "there is no file other.py" in CallableReward(target="other.py:polite").check()[0]


@pytest.mark.parametrize("source", ["def f(:", "import no_such_module", "raise SystemExit(0)", "1 / 0"])
def test_a_file_that_cannot_be_imported_is_one_sentence(tmp_path, source):
    (tmp_path / "broken.py").write_text(source)
    (problem,) = CallableReward(target=f"{tmp_path}/broken.py:f").check()
    assert "cannot be imported: " in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("target", "arguments", "text"),
    [
        ("one_parameter", {}, "does not fit: too many positional arguments"),
        ("length", {"scales": 2}, "unexpected keyword argument 'scales'"),
        ("Counting", {}, "missing a required argument: 'start'"),
        ("Silent", {}, "cannot be called"),
        ("later", {}, "is an async function"),
        ("Later", {}, "is an async function"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused_before_loading(target, arguments, text):
    (problem,) = CallableReward(target=f"{HERE}:{target}", arguments=arguments).check("judges.mine")
    assert text in problem
    assert problem.startswith(f"judges.mine.target={HERE}:{target}")


def test_a_function_of_this_process_is_checked_in_the_same_way():
    assert "does not fit: too many" in FunctionReward(function=one_parameter).check()[0]
    assert FunctionReward(function=later).check()[0].startswith("reward=later is an async function")
    assert FunctionReward(function=lambda prompt, responses: responses).check() == []


@pytest.mark.parametrize(
    ("target", "text"), [("nothing", "is not a path"), ("no_such:thing", "no module"), ("math:no", "has no 'no'")]
)
def test_a_wrong_target_is_said_before_loading(target, text):
    assert text in CallableReward(target=target).check()[0]
    assert "not something to call" in CallableReward(target="math:pi").check()[0]
