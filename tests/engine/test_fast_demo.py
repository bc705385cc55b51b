"""The embedded policy under AISP: the search with the fast engine is the search with the plain one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aisp_ray.methods.aisp import Aisp
from aisp_ray.policy.causal_lm import CausalLM
from aisp_ray.types import Message, Prompt, Scores

TEXTS = ("How do I reset my password?", "My printer is broken.", "hello", "Where is my order? It is late.")


def search(policy: Any, method: Aisp) -> list:
    """Every prompt's search at once, with a reward that any text has. Returns responses with their weights' logs."""
    found = {}
    states, tickets = {}, {}

    def ask(index: int) -> None:
        prompt = Prompt(f"test/{index}", index, "test", TEXTS[index], (Message("user", TEXTS[index]),))
        state = states.setdefault(index, method.init(prompt, 0))
        tickets[policy.engine.submit(policy.request(prompt, method.ask(state), 0))] = index

    for index in range(len(TEXTS)):
        ask(index)
    while policy.engine.num_pending:
        for ticket, result in policy.engine.step():
            assert not isinstance(result, Exception), result
            index, rollouts = tickets[ticket], policy.finish(result)
            scores = Scores(tuple(float(len(set(item.text))) for item in rollouts.items))
            states[index], _ = method.tell(states[index], rollouts, scores)
            found.setdefault(index, []).append([(item.text, item.token_ids) for item in rollouts.items])
            if not states[index].done:
                ask(index)
    return [found[index] for index in range(len(TEXTS))]


def test_searches_with_the_fast_and_the_plain_engine_give_equal_texts() -> None:
    spec = CausalLM(model="demo:policy", dtype="float32", max_new_tokens=24, slots=32)
    method = Aisp(n=8, kappa=3, horizon=24)
    fast = spec.load("cpu")
    assert fast.engine.fingerprint["engine"] == "fast"
    plain = replace(spec, engine="plain").load("cpu")
    expected = search(plain, method)
    assert search(fast, method) == expected
    assert len({text for one in expected for rows in one for text, _ in rows}) > 30
    assert fast.engine.stats()["prefix_misses"] == len(TEXTS)
