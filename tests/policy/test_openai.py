"""A policy behind an OpenAI-compatible server: what is sent, what is read, what is refused, and outages."""

from __future__ import annotations

import asyncio
import math
import sys
from pathlib import Path

import pytest

from aisp_ray import config
from aisp_ray.cluster.local import LocalPolicy, LocalReward
from aisp_ray.commands.eval import main
from aisp_ray.driver import search
from aisp_ray.errors import DataError, LoadError, is_away, is_sentence
from aisp_ray.ledger import Task
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.methods.blockwise import Blockwise
from aisp_ray.methods.particle_filter import ParticleFilter
from aisp_ray.methods.qalign import QAlign
from aisp_ray.policy.openai import OpenAIPolicy, split_like, text_of
from aisp_ray.rewards.callable import CallableReward
from aisp_ray.types import Message, Prompt, Proposal, Sampling
from aisp_ray.worker import PolicyWorker
from tests.endpoints import WORDS, serving

PROMPT = Prompt("p/1", 0, "d", "How do I clean it?")
DIALOGUE = Prompt("p/2", 0, "d", "x", (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "why?")))


def policy(server, **settings):
    return OpenAIPolicy(
        **{"model": "small", "base_url": server.base_url, "api_key_env": None, "max_new_tokens": 16, **settings}
    )


def draw(spec, proposal, prompt=PROMPT, seed=0):
    worker = PolicyWorker(lambda: spec.load("cpu"))
    try:
        return worker.submit(prompt, proposal, seed).result(timeout=20)
    finally:
        worker.close()


def count_e(prompt, responses):
    return [float(text.count("e")) for text in responses]


def run(spec, method, prompt=PROMPT):
    policy, reward = LocalPolicy(spec), LocalReward(CallableReward(target=f"{__name__}:count_e"))
    try:
        return asyncio.run(search(Task(prompt, "m", method), policy, reward, seed=0))
    finally:
        policy.worker.close()
        reward.worker.close()


def test_a_proposal_is_a_request_per_particle_with_its_own_seed():
    with serving() as server:
        proposal = Proposal(0, 6, sampling=Sampling(0.8, 0.9, top_k=5))
        rollouts = draw(policy(server, system="Be brief."), proposal, DIALOGUE)
        again = draw(policy(server, system="Be brief."), proposal, DIALOGUE)
    assert [item.particle for item in rollouts.items] == list(range(6))
    assert [item.text for item in again.items] == [item.text for item in rollouts.items]
    bodies = [body for path, body in server.bodies if path == "/v1/chat/completions"]
    assert len({body["seed"] for body in bodies}) == 6
    for body in bodies:
        assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.8, 0.9, 5, 16)
        assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant", "user"]
    for item in rollouts.items:
        assert item.finish_reason == "stop"
        assert item.num_generated_tokens == len(item.token_ids) == 9  # eight words and the end
        assert text_of(item.token_ids) == item.text
        assert item.logprob == pytest.approx(-4.5)


@pytest.mark.parametrize("template", ["chat", "transcript"])
def test_a_prefix_is_continued_from_its_text(template):
    with serving() as server:
        spec = policy(server, template=template)
        first = draw(spec, Proposal(0, 1, sampling=Sampling(1.0), max_new_tokens=3)).items[0]
        server.bodies.clear()
        proposal = Proposal(1, 2, sampling=Sampling(1.0), max_new_tokens=5, prefixes=(first.token_ids, ()))
        longer, fresh = draw(spec, proposal).items
        last = next(body for path, body in server.bodies if path.endswith("completions") and body["max_tokens"] == 2)
    assert (first.finish_reason, len(first.token_ids)) == ("length", 3)
    assert longer.text.startswith(first.text)
    assert (longer.token_ids[:3], len(longer.token_ids), longer.num_generated_tokens) == (first.token_ids, 5, 2)
    assert len(fresh.token_ids) == 5
    if template == "chat":
        assert last["messages"][-1] == {"role": "assistant", "content": first.text}
        assert (last["continue_final_message"], last["add_generation_prompt"]) == (True, False)
    else:
        assert last["prompt"] == f"\n\nHuman: {PROMPT.text}\n\nAssistant:{first.text}"
        assert last["stop"] == ["\n\nHuman:"]


@pytest.mark.parametrize(
    "method",
    [
        BestOfN(n=4, kappa=2),
        BestOfN(n=4, kappa=2, select="soft", select_beta=0.5),
        BestOfN(n=4, kappa=2, select="regularised", select_beta=0.1),
        Blockwise(n=4, block=2, max_new_tokens=8),
        ParticleFilter(n=4, block=2, max_new_tokens=8),
        QAlign(n=2, kappa=3),
    ],
    ids=lambda method: f"{type(method).__name__}-{method.select if hasattr(method, 'select') else ''}",
)
@pytest.mark.parametrize("without_logprobs", [False, True])
def test_methods_that_sample_run_on_an_endpoint(method, without_logprobs):
    if without_logprobs and getattr(method, "select", "") == "regularised":
        return
    with serving(without_logprobs=without_logprobs) as server:
        progress = run(policy(server), method)
    best = progress.state.best
    assert best.reward == best.response.count("e")
    assert progress.trace.num_samples <= method.num_samples
    assert set(best.response.split()) <= set(WORDS)
    if isinstance(method, Blockwise):
        assert progress.trace.num_samples_seen == (4, 8, 12, 16)  # blocks of exactly two tokens
        assert len(best.response.split()) == 8


def test_what_an_endpoint_cannot_give_is_refused_before_it_is_spoken_to(capsys):
    words = ["policy=openai", "policy.model=x", "policy.base_url=http://127.0.0.1:9/v1", "allow_unequal_budgets=true"]
    assert main([*words, "method=[aisp,best_of_n,args]", "limit=1"]) == 2
    shown = capsys.readouterr().err
    assert "method.aisp needs steering of pre-logits, which OpenAIPolicy does not give; set policy" in shown
    assert "method.args needs the logits of a chosen first token" in shown
    assert "method.best_of_n needs" not in shown
    assert main([*words, "method=best_of_n_regularised", "policy.logprobs=false", "limit=1"]) == 2
    assert "method.best_of_n_regularised needs log-probabilities" in capsys.readouterr().err
    with serving() as server, pytest.raises(ValueError, match="asks for control"):
        draw(policy(server), Aisp(n=2).ask(Aisp(n=2).init(PROMPT, 0)))


@pytest.mark.parametrize("name", sorted(config.choices("method")))
def test_a_method_says_what_its_proposals_ask_for(name):
    """By the contract's own toy: nothing is asked of an engine that `asks_for` does not list."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "methods"))
    from test_contract import reward, small
    from toy_world import ToyPolicy, drive

    from aisp_ray.types import ASKS, asked_by

    method, asked = small(name), set()

    class Watching(ToyPolicy):
        def rollout(self, prompt, proposal, seed):
            asked.update(asked_by(proposal))
            return super().rollout(prompt, proposal, seed)

    drive(method, Watching(), reward)
    assert asked <= method.asks_for <= ASKS.keys()


def test_an_outage_is_raised_as_such_and_what_was_answered_is_kept():
    with serving(failures=[503, 0]) as server:
        worker = PolicyWorker(lambda: policy(server, retries=0, concurrency=1).load("cpu"))
        proposal = Proposal(0, 3, sampling=Sampling(1.0))
        with pytest.raises(Exception, match="503") as caught:
            worker.submit(PROMPT, proposal, 0).result(timeout=20)
        assert is_away(caught.value)
        assert len(worker.submit(PROMPT, proposal, 0).result(timeout=20).items) == 3
        worker.close()
    assert len(server.bodies) == 4  # the first is not asked for again


def test_what_the_endpoint_refuses_is_an_error_of_the_prompt():
    with serving(failures=[400], message="maximum context length is 10") as server:
        with pytest.raises(DataError, match=r"refuses the prompt.*maximum context length"):
            draw(policy(server), Proposal(0, 1, sampling=Sampling(1.0)))
        with pytest.raises(DataError, match="empty"):
            draw(policy(server), Proposal(0, 1), Prompt("p", 0, "d", " "))


def test_a_reply_that_only_thinks_is_an_error_and_no_empty_response():
    with serving(thinks=True) as server, pytest.raises(DataError, match="a model that thinks first needs more"):
        draw(policy(server), Proposal(0, 1, sampling=Sampling(1.0)))


def test_a_model_that_is_not_served_is_named_with_those_that_are():
    with serving(models=["other"]) as server, pytest.raises(ValueError, match=r"policy\.model=small: .* serves other"):
        policy(server).load("cpu")


def test_a_server_that_is_not_there_or_fails_is_a_sentence_with_its_address():
    with serving() as server:
        address = server.base_url
        server.fails = 503
        spec = policy(server, retries=0)
        with pytest.raises(LoadError, match=rf"policy\.base_url={address}/?: the server fails: .*not now") as failing:
            spec.load("cpu")
    with pytest.raises(LoadError, match=rf"policy\.base_url={address}/?: no server answers there .*refused") as gone:
        spec.load("cpu")
    assert is_sentence(failing.value)
    assert is_sentence(gone.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"template": "x.jinja"}, "own chat template"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"concurrency": 0}, "concurrency"),
        ({"stop_strings": ("",)}, "empty text"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        OpenAIPolicy(model="m", **settings)


def test_a_missing_key_is_said_before_a_run(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "set OPENAI_API_KEY, or policy.api_key_env=null" in OpenAIPolicy(model="m").check()[0]


@pytest.mark.parametrize(
    ("text", "tokens", "count"),
    [
        ("ab cd", [b"ab", b" cd", b"<end>"], 3),
        ("日本", [b"\xe6\x97", b"\xa5", b"\xe6\x9c\xac"], 3),  # letters of several tokens
        ("日本", ["�".encode(), "本".encode()], 2),  # a token that spells no letter
        ("six letters", [], 4),
        ("a", [], 3),
        ("", [b"<end>"], 1),
        ("", [], 0),
    ],
)
def test_pieces_are_as_many_as_tokens_and_spell_the_text(text, tokens, count):
    pieces = split_like(text, tokens, count)
    assert len(pieces) == count
    assert b"".join(pieces) == text.encode()
    ids = [int.from_bytes(b"\x01" + piece) for piece in pieces]
    assert text_of(ids) == text
    assert all(text.startswith(text_of(ids[:k])) for k in range(count))


def test_logprob_is_unknown_where_none_came():
    with serving(without_logprobs=True) as server:
        assert math.isnan(draw(policy(server), Proposal(0, 1, sampling=Sampling(1.0))).items[0].logprob)
