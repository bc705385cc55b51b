"""Python functions and classes as rewards."""

import math
from urllib.error import HTTPError, URLError

import pytest

from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.callable import CallableReward
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


def short(prompt, responses):
    return [1.0, 2.0, 3.0][: len(responses) - 1]


def away(prompt, responses, error):
    away.calls += 1
    raise error


away.calls = 0


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
    assert scores.num_calls == 2


def test_a_class_is_made_once():
    scorer = CallableReward(target=f"{HERE}:Counting", arguments={"start": 10}).load("cpu")
    requests = [ScoreRequest(PROMPT, ("a",)), ScoreRequest(PROMPT, ("b",))]
    assert [scores.rewards for scores in scorer.score(requests)] == [(11.0,), (12.0,)]


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


def test_too_few_rewards_are_an_error():
    scores = score("short", "a", "b")
    assert all(map(math.isnan, scores.rewards))
    assert "0 rewards for 1 responses" in scores.errors[0]


@pytest.mark.parametrize(
    ("target", "text"), [("nothing", "is not a path"), ("no_such:thing", "no module"), ("math:no", "has no 'no'")]
)
def test_a_wrong_target_is_said_before_loading(target, text):
    assert text in CallableReward(target=target).check()[0]
    assert "not something to call" in CallableReward(target="math:pi").check()[0]
