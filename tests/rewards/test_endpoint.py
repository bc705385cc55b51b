"""A reward model behind vLLM's classification and pooling interfaces, against a server of our own."""

from __future__ import annotations

import math

import pytest

from aisp_ray.errors import is_away
from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.endpoint import EndpointReward
from aisp_ray.types import Message, Prompt
from aisp_ray.worker import RewardWorker
from tests.endpoints import serving

PROMPT = Prompt("p/1", 0, "d", "Why so?", (Message("user", "Why so?"),))


def reward(server, **settings):
    return EndpointReward(model="small", base_url=server.base_url, api_key_env=None, **settings).load("cpu")


@pytest.mark.parametrize("api", ["classify", "pooling"])
def test_a_chat_is_sent_as_messages_and_identical_ones_once(api):
    with serving() as server:
        scores = reward(server, api=api).score([ScoreRequest(PROMPT, ("bee", "no", "bee"))])[0]
    low = scores.rewards[1]
    assert scores.rewards == (low + 2, low, low + 2)
    assert len(server.bodies) == 2
    for path, body in server.bodies:
        assert path == f"/{api}"
        assert body["messages"][0] == {"role": "user", "content": "Why so?"}
        assert (body["use_activation"], body["model"]) == (False, "small")
        assert body.get("task") == ("classify" if api == "pooling" else None)


@pytest.mark.parametrize("template", ["ultrarm_card", "plain"])
def test_a_fixed_text_goes_out_in_batches_and_comes_back_in_order(template):
    responses = tuple("e" * k for k in range(7))
    with serving() as server:
        scorer = reward(server, template=template, batch=3)
        scores = scorer.score([ScoreRequest(PROMPT, responses[:4]), ScoreRequest(PROMPT, responses[4:])])
    values = [value for one in scores for value in one.rewards]
    assert [value - values[0] for value in values] == list(range(7))
    assert sorted(len(body["input"]) for _, body in server.bodies) == [1, 3, 3]
    assert {body["add_special_tokens"] for _, body in server.bodies} == {True}
    assert scorer.stats()["reward_prompt_tokens"] == 49


def test_one_text_that_the_server_refuses_costs_only_itself():
    with serving() as server:
        scores = reward(server, template="plain").score([ScoreRequest(PROMPT, ("e", "too long", "ee"))])[0]
    assert math.isnan(scores.rewards[1])
    assert "longer than the model's context" in scores.errors[1]
    assert scores.rewards[2] - scores.rewards[0] == 1
    assert scores.errors[0] is scores.errors[2] is None


def test_a_dialogue_that_does_not_fit_the_template_is_an_error_of_its_responses():
    asked = Prompt("p/2", 1, "d", "x", (Message("system", "s"), Message("user", "x")))
    with serving() as server:
        found = reward(server, template="eurus").score([ScoreRequest(asked, ("a",)), ScoreRequest(PROMPT, ("e",))])
    assert "system" in found[0].errors[0]
    assert found[1].errors == (None,)


@pytest.mark.parametrize(
    ("settings", "before", "reason"),
    [
        ({}, [0.5], "2 outputs; say which is the reward"),
        ({"reduction": "label:3"}, [0.5], "outputs 0 to 1"),
        ({"api": "pooling"}, [[0.1, 0.2]], "outputs per token"),
    ],
)
def test_outputs_that_are_no_reward_are_errors(settings, before, reason):
    with serving(before=before) as server:
        scores = reward(server, **settings).score([ScoreRequest(PROMPT, ("bee",))])[0]
    assert reason in scores.errors[0]


def test_one_of_several_outputs_is_the_reward():
    with serving(before=[0.5, 0.25]) as server:
        first = reward(server, reduction="label:1").score([ScoreRequest(PROMPT, ("bee",))])[0]
    assert first.rewards == (0.25,)


def test_an_outage_is_raised_and_a_short_one_retried():
    with serving(failures=[503, 429]) as server:
        assert reward(server).score([ScoreRequest(PROMPT, ("bee",))])[0].errors == (None,)
        assert len(server.bodies) == 3
        server.failures = [503] * 2
        worker = RewardWorker(lambda: reward(server, retries=0))
        with pytest.raises(Exception, match="503") as caught:
            worker.submit(ScoreRequest(PROMPT, ("bee", "no"))).result(timeout=20)
        assert is_away(caught.value)
        server.failures = []
        assert worker.submit(ScoreRequest(PROMPT, ("bee", "no"))).result(timeout=20).errors == (None, None)
        worker.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"api": "score"}, "classify, pooling"),
        ({"template": "ultrarm_reward_bench"}, "template is"),
        ({"template": "pair"}, "template is"),
        ({"reduction": "mean"}, "label:K"),
        ({"batch": 0}, "at least 1 text"),
        ({"retries": -1}, "retries"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        EndpointReward(model="m", **settings)


def test_an_address_is_needed():
    assert "judges.served.base_url must be set" in EndpointReward(model="m").check("judges.served")[0]
