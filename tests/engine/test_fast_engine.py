"""The fast engine's rows equal the plain engine's, whatever is asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, bits, drive, prompt, request, tiny

from aisp_ray.controls.laws import Feedback, OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.factory import build_engine
from aisp_ray.engine.plain import PlainEngine
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.types import Sampling

LOG = WeightLog(
    (
        WeightEntry(0, (0.1, 0.2, 0.3, 0.4), (10, 3, 9, 10), 1.0),
        WeightEntry(1, (0.7, 0.1, 0.1, 0.1), (10, 10, 2, 8), 1.0, start=1),
    )
)
ALL = frozenset({"logprob", "token_kl", "prelogits"})


def decode(ids: object) -> str:
    return "".join(chr(97 + token % 26) for token in ids)


def pull_law(device: object, dim: int, strength: float) -> object:
    """A feedback law for the tests: towards zero."""
    assert dim == 64
    return lambda z: -strength * z


WORK = {
    "none": [request()],
    "noise": [request(control=OpenLoop(10, None, 1.0), n=9)],
    "horizon shorter than the response": [request(control=OpenLoop(3, None, 2.0), want=ALL)],
    "mean": [request(control=OpenLoop(10, LOG, 1.0), iteration=2, want=ALL)],
    "mean alone": [request(control=OpenLoop(10, LOG, 0.0), iteration=2)],
    "decay": [
        request(control=OpenLoop(8, LOG, 1.0, decay=0.8), iteration=2, want=ALL),
        request(control=OpenLoop(10, None, 1.0, decay=1.1), seed=1, n=6),
        request(control=OpenLoop(9, LOG, 2.0, decay=0.9, scale=0.4), iteration=1, seed=1),
    ],
    "feedback": [
        request(control=Feedback(5, "test_fast_engine:pull_law", (("strength", 0.5),)), want=ALL),
        request(control=Feedback(10, "test_fast_engine:pull_law", (("strength", 2.0),)), seed=1),
    ],
    "temperature": [request(sampling=Sampling(0.8), n=8, tokens=12)],
    "top_p": [request(sampling=Sampling(1.3, top_p=0.7), control=OpenLoop(9, None, 0.5))],
    "top_k": [request(sampling=Sampling(1.3, top_k=5), want=ALL)],
    "support": [
        request(control=OpenLoop(10, None, 3.0), n=9, sampling=Sampling(support_top_p=0.1)),
        request(control=OpenLoop(6, LOG, 3.0), iteration=1, sampling=Sampling(1.0, support_top_p=0.3), want=ALL),
        request(n=4, sampling=Sampling(1.0, support_top_p=0.2), stop=StopRules(tuple(range(3, 60)), min_new_tokens=4)),
        request(
            control=Feedback(10, "test_fast_engine:pull_law", (("strength", 2.0),)),
            sampling=Sampling(0.5, top_p=0.5, support_top_p=0.1),
        ),
    ],
    "stop ids": [request(control=OpenLoop(10, None, 1.0), n=9, stop=StopRules(tuple(range(3, 20))))],
    "min new tokens": [
        request(control=OpenLoop(10, None, 1.0), n=9, stop=StopRules(tuple(range(3, 60)), min_new_tokens=4)),
        request(control=OpenLoop(10, None, 1.0), seed=3, stop=StopRules(tuple(range(50, 90)), min_new_tokens=2)),
    ],
    "stop strings": [request(control=OpenLoop(10, None, 1.0), n=12, stop=StopRules((5, 6), ("q", "b"), 2), want=ALL)],
    "stop strings from a minimum on": [
        request(control=OpenLoop(10, None, 1.0), n=12, tokens=12, stop=StopRules((), ("q", "b", "cd"), 6)),
    ],
    "prefixes": [
        request(control=OpenLoop(10, LOG, 1.0), prefixes=((), (7,), (3, 4, 5, 6, 7, 8, 9, 10, 11), (9, 9)), want=ALL)
    ],
    "branches": [
        request(n=5, tokens=3, sampling=Sampling(branch_first=True), prefixes=((), (8,), (8,), (8, 9), (8, 9))),
        request(n=5, tokens=1, sampling=Sampling(branch_first=True)),
    ],
    "some particles": [request(n=9, control=OpenLoop(10, None, 1.0), particles=(7, 2, 8))],
}


def same(plain: object, fast: object) -> None:
    assert plain.num_prompt_tokens == fast.num_prompt_tokens
    assert plain.iteration == fast.iteration
    assert plain.control_norm == pytest.approx(fast.control_norm, rel=1e-5)
    for p, f in zip(plain.items, fast.items, strict=True):
        assert (p.particle, p.token_ids, p.finish_reason) == (f.particle, f.token_ids, f.finish_reason)
        assert p.num_generated_tokens == f.num_generated_tokens
        for name in ("control_inner", "control_square", "logprob", "token_kl"):
            assert getattr(p, name) == pytest.approx(getattr(f, name), rel=1e-4, abs=1e-4, nan_ok=True), name
        assert (p.prelogits is None) == (f.prelogits is None)
        if p.prelogits is not None:
            np.testing.assert_allclose(p.prelogits, f.prelogits, atol=1e-4)


@pytest.mark.parametrize("name", WORK)
def test_rows_equal_the_plain_engine(name: str) -> None:
    model = tiny("llama")
    plain = drive(PlainEngine(model, decode), WORK[name])
    fast = drive(FastEngine(model, 8, decode, max_new_tokens=12, tile=8), WORK[name])
    for p, f in zip(plain, fast, strict=True):
        same(p, f)


def test_rows_equal_the_plain_engine_with_all_work_mixed_in_one_queue() -> None:
    model = tiny("llama")
    work = [one for requests in WORK.values() for one in requests]
    plain = drive(PlainEngine(model, decode), work)
    engine = FastEngine(model, 16, decode, max_new_tokens=12, tile=8)
    for p, f in zip(plain, drive(engine, work), strict=True):
        same(p, f)
    stats = engine.stats()
    assert stats["busy_useful_row_steps"] / stats["busy_row_steps"] > 0.98
    assert stats["prefix_misses"] == 3  # three different prompts among them
    assert engine.num_pending == 0


def test_branches_take_the_most_likely_tokens_in_order_with_their_logits() -> None:
    model = tiny("llama")
    work = request(n=6, tokens=1, sampling=Sampling(branch_first=True))
    (rollouts,) = drive(FastEngine(model, 8, max_new_tokens=4, tile=8), [work])
    with torch.no_grad():
        logits = model(torch.tensor([work.prompt_ids])).logits[0, -1]
    top = logits.topk(6)
    assert [item.token_ids[0] for item in rollouts.items] == top.indices.tolist()
    np.testing.assert_allclose([item.first_logit for item in rollouts.items], top.values, rtol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "granite", "phi", "lfm2"])
def test_log_probabilities_are_those_of_teacher_forcing(name: str) -> None:
    model = tiny(name)
    work = request(9, control=OpenLoop(12, None, 1.0), tokens=12, n=6, want=frozenset({"logprob"}))
    (rollouts,) = drive(FastEngine(model, 8, max_new_tokens=12, tile=8), [work])
    for item in rollouts.items:
        ids = torch.tensor([[*work.prompt_ids, *item.token_ids]])
        with torch.no_grad():
            log = model(ids).logits.float().log_softmax(-1)[0, 8:-1]
        assert item.logprob == pytest.approx(float(log.gather(1, ids[0, 9:, None]).double().sum()), abs=1e-4)


def test_a_continued_row_is_the_row_it_continues() -> None:
    engine = FastEngine(tiny("llama"), 8, max_new_tokens=10, tile=8)
    control = OpenLoop(10, LOG, 1.0)
    (whole,) = drive(engine, [request(control=control, want=frozenset({"prelogits"}))])
    given = tuple(item.token_ids[: 2 * i] for i, item in enumerate(whole.items))
    (rest,) = drive(engine, [request(control=control, prefixes=given, want=frozenset({"prelogits"}))])
    for i, (a, b) in enumerate(zip(whole.items, rest.items, strict=True)):
        assert a.token_ids == b.token_ids
        assert np.array_equal(a.prelogits[2 * i :], b.prelogits)


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_a_search_token_by_token_decodes_each_token_once(name: str) -> None:
    """Greedy expansion as ARGS does it: continue the best prefix by one of its likely next tokens."""
    model = tiny(name)
    kept, fresh = (FastEngine(model, 8, max_new_tokens=10, tile=8) for _ in range(2))
    fresh._save = lambda *_: None
    prefix: tuple[int, ...] = ()
    for length in range(1, 9):
        asked = request(
            n=4,
            tokens=length,
            sampling=Sampling(branch_first=True),
            prefixes=(prefix,) * 4,
            want=frozenset({"logprob"}),
        )
        (found,), (again,) = drive(kept, [asked]), drive(fresh, [asked])
        assert bits(found) == bits(again)
        assert [item.first_logit for item in found.items] == [item.first_logit for item in again.items]
        prefix = found.items[length % 4].token_ids
    assert kept.stats()["useful_row_steps"] < 4 * 2 * 8
    assert fresh.stats()["useful_row_steps"] == 4 * sum(range(1, 9))
    (plain,) = drive(PlainEngine(model), [asked])
    same(plain, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_stay_close_to_their_own_teacher_forcing(dtype: torch.dtype) -> None:
    model = tiny("llama", dtype)
    work = request(9, control=OpenLoop(8, None, 0.5), tokens=8, want=frozenset({"logprob", "prelogits"}))
    (rollouts,) = drive(FastEngine(model, 8, max_new_tokens=8, tile=8), [work])
    for item in rollouts.items:
        ids = torch.tensor([[*work.prompt_ids, *item.token_ids]])
        with torch.no_grad():
            own = model.base_model(ids).last_hidden_state[0, 8:-1].float().numpy()
        assert np.abs(own - item.prelogits).max() < 0.1 * np.sqrt(np.square(own).mean())
        assert math.isfinite(item.logprob)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"tokens": 99}, "max_new_tokens is 99"),
        ({"stop": StopRules((), ("end",))}, "decode"),
        ({"want": frozenset({"gradients"})}, "gradients"),
        ({"n": 1, "prefixes": ((1,) * 10,)}, "not shorter"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_the_reason(bad: dict, says: str) -> None:
    engine = FastEngine(tiny("llama"), 4, max_new_tokens=12, tile=4)
    with pytest.raises(ValueError, match=says):
        engine.submit(request(**bad))
    assert engine.num_pending == 0


def test_a_failing_request_is_answered_and_the_others_go_on() -> None:
    engine = FastEngine(tiny("llama"), 4, max_new_tokens=12, tile=4)
    good = engine.submit(request())
    bad = engine.submit(request(control=Feedback(5, "no.such.module:law")))
    found = {}
    while engine.num_pending:
        found |= dict(engine.step())
    assert isinstance(found[bad], ValueError)
    assert len(found[good].items) == 4


def test_seconds_are_shared_out_among_requests() -> None:
    engine = FastEngine(tiny("llama"), 8, max_new_tokens=12, tile=8)
    found = drive(engine, [request(seed=0), request(seed=1)])
    assert all(rollouts.seconds > 0 for rollouts in found)


def test_an_unknown_kind_of_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="fast, expanded, plain"):
        build_engine(tiny("llama"), kind="quick")


def test_prompts_are_what_the_tests_think() -> None:
    assert len(prompt(7)) == 7
    assert max(prompt(50)) < VOCABULARY
