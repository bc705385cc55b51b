"""The vLLM engine against the plain one, float32: the same tokens for every law, every way of choosing, any mix."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aisp_ray.controls.laws import Feedback, OpenLoop
from aisp_ray.controls.score_log import ScoreEntry, ScoreLog
from aisp_ray.controls.value import ValueFunction
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.plain import PlainEngine
from aisp_ray.engine.vllm.head import PlainHead
from aisp_ray.errors import DataError
from aisp_ray.types import Sampling
from tests.engine.tiny_models import drive, request
from tests.vllm.conftest import letters
from tests.vllm.small_models import DIM, VOCABULARY

ARCHITECTURES = ("llama", "qwen3", "gemma3", "mistral")
ALL = frozenset({"logprob", "token_kl", "prelogits"})
MEAN = WeightLog(
    (
        WeightEntry(0, (0.5, 0.0, 0.3, 0.2), (8, 3, 8, 2), 1.0),
        WeightEntry(1, (0.1, 0.4, 0.0, 0.3), (8, 8, 5, 7), 0.8, 2),
    )
)


def differing(model, engine, requests):
    """Compare all rows. Returns how many there are and those whose tokens or finish differ."""
    expected, found = drive(PlainEngine(model, letters), requests), drive(engine, requests)
    count, wrong = 0, []
    for asked, a, b in zip(requests, expected, found, strict=True):
        assert a.iteration == b.iteration
        assert b.control_norm == pytest.approx(a.control_norm, rel=1e-5)
        for x, y in zip(a.items, b.items, strict=True):
            count += 1
            same = (x.particle, x.token_ids, x.finish_reason) == (y.particle, y.token_ids, y.finish_reason)
            if not same:
                wrong.append((asked, x, y))
                continue
            assert x.num_generated_tokens == y.num_generated_tokens
            for name in ("control_inner", "control_square", "logprob", "token_kl", "first_logit"):
                one, other = getattr(x, name), getattr(y, name)
                assert other == pytest.approx(one, rel=1e-4, abs=2e-4, nan_ok=True), name
            if x.prelogits is not None:
                np.testing.assert_allclose(y.prelogits, x.prelogits, atol=1e-4)
    return count, wrong


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_are_the_plain_engines(engines, name):
    """Ragged prompts on both sides of the windows, more rows than slots, several laws at once."""
    model, engine = engines(name)
    requests = [
        request(
            length=length,
            n=5,
            tokens=6 + length % 19,
            seed=seed,
            iteration=seed,
            control=OpenLoop(horizon=10, mean=MEAN if seed % 2 else None, sigma=1.0),
            want=ALL if seed % 3 == 0 else frozenset(),
            stop=StopRules((5, 9, 40)),
        )
        for seed, length in enumerate((1, 2, 5, 11, 12, 13, 24, 40, 7, 33))
    ]
    count, wrong = differing(model, engine, requests)
    print(f"{name}: {len(wrong)} of {count} sequences differ")
    assert not wrong


def test_the_comparison_can_fail(engines):
    model, engine = engines("llama")
    asked = request(control=OpenLoop(horizon=8, sigma=1.0), n=8)
    expected = drive(PlainEngine(model), [request(control=OpenLoop(horizon=8, sigma=1.001), n=8, iteration=1)])
    assert [x.token_ids for x in expected[0].items] != [y.token_ids for y in drive(engine, [asked])[0].items]


@pytest.mark.parametrize(
    "control",
    [
        OpenLoop(horizon=8, sigma=0.7),
        OpenLoop(horizon=8, mean=MEAN, sigma=0.5),
        OpenLoop(horizon=8, mean=MEAN),
        OpenLoop(horizon=25, mean=MEAN, sigma=1.0, decay=0.9),
        OpenLoop(horizon=25, mean=MEAN, sigma=2.0, decay=0.95, scale=0.4),
        OpenLoop(horizon=0, sigma=1.0),
    ],
    ids=("noise", "mean", "mean_alone", "shrinking", "scaled", "nothing"),
)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_every_open_loop_law(engines, name, control):
    model, engine = engines(name)
    requests = [request(length=6 + k, tokens=28, control=control, want=ALL, iteration=2, seed=k) for k in range(2)]
    assert not differing(model, engine, requests)[1]


def test_feedback(engines, tmp_path):
    model, engine = engines("qwen3")
    torch.manual_seed(1)
    ValueFunction(DIM, 32).save(tmp_path / "value.safetensors", {})
    options = (("path", str(tmp_path / "value.safetensors")), ("step_size", 0.5), ("steps", 3))
    law = Feedback(horizon=9, target="aisp_ray.controls.value:gradient_feedback", options=options)
    requests = [request(length=9, tokens=14, control=law, want=ALL), request(tokens=14, control=OpenLoop(8, sigma=1.0))]
    assert not differing(model, engine, requests)[1]
    assert drive(engine, requests)[0].items[0].control_square > 0


@pytest.mark.parametrize("penalty", ["fisher", "kl", "l2", "none"])
def test_a_mean_made_of_responses_replays_them(engines, penalty):
    """MISVO: responses that this engine never drew are decoded again for their pre-logits, then the head is used."""
    model, engine = engines("gemma2")  # whose head is capped
    drawn = [
        drive(PlainEngine(model), [request(n=3, tokens=n, control=OpenLoop(12, sigma=1.0), iteration=k)])[0]
        for k, n in ((0, 6), (1, 9))
    ]
    entries = tuple(ScoreEntry(tuple(x.token_ids for x in d.items), (1.0, -0.5, -0.5)) for d in drawn)
    control = OpenLoop(horizon=8, mean=ScoreLog(entries, step_size=2.0, penalty=penalty))
    asked = request(n=3, tokens=12, control=control, iteration=2, want=frozenset({"logprob"}))
    assert not differing(model, engine, [asked, request(seed=3, tokens=12)])[1]
    assert engine.num_pending == 0


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=1.3, top_k=5),
        Sampling(temperature=1.0, top_k=20, top_p=0.5),
        Sampling(support_top_p=0.05),
        Sampling(temperature=1.0, top_p=0.9, support_top_p=0.2),
        Sampling(branch_first=True),
        Sampling(temperature=1.0, branch_first=True),
    ],
    ids=str,
)
def test_every_way_of_choosing(engines, sampling):
    model, engine = engines("llama")
    requests = [
        request(n=6, tokens=14, sampling=sampling, stop=StopRules((3, 50), (), 6)),
        request(n=6, tokens=14, seed=1, sampling=sampling, control=OpenLoop(9, sigma=0.5), want=ALL),
    ]
    count, wrong = differing(model, engine, requests)
    assert not wrong, f"{len(wrong)} of {count}"


def test_all_of_it_side_by_side(engines):
    """Laws, samplings, stops and prefixes mixed in one batch that is larger than the slots."""
    model, engine = engines("mistral")
    choices = [Sampling(support_top_p=0.1), Sampling(temperature=1.0, top_p=0.8), Sampling(branch_first=True)]
    laws = [None, OpenLoop(6, sigma=1.0), OpenLoop(12, mean=MEAN, sigma=0.4)]
    requests = [
        request(
            length=4 + 5 * k,
            seed=k,
            tokens=9 + k,
            control=laws[k % 3],
            sampling=choices[k // 3],
            want=ALL if k % 2 else frozenset(),
            prefixes=None if k % 4 else ((), (7,), (8, 9, 10), (11, 12)),
            stop=StopRules((k, 40 + k), ("qq", "xyz") if k % 2 else (), k),
        )
        for k in range(9)
    ]
    count, wrong = differing(model, engine, requests)
    assert not wrong, f"{len(wrong)} of {count}"
    assert count == 36


def test_a_part_of_the_particles(engines):
    model, engine = engines("llama")
    whole = request(n=6, control=OpenLoop(8, sigma=1.0))
    part = request(n=6, control=OpenLoop(8, sigma=1.0), particles=(4, 1))
    assert not differing(model, engine, [whole, part])[1]
    a, b = drive(engine, [whole, part])
    assert [b.items[0].token_ids, b.items[1].token_ids] == [a.items[4].token_ids, a.items[1].token_ids]


def test_prefixes_to_continue_from(engines):
    model, engine = engines("gemma3")
    first = drive(engine, [request(n=4, tokens=20, control=OpenLoop(20, sigma=1.0))])[0]
    cuts = tuple(item.token_ids[:length] for item, length in zip(first.items, (0, 3, 9, 17), strict=True))
    again = request(n=4, tokens=20, control=OpenLoop(20, sigma=1.0), prefixes=cuts, want=ALL)
    assert not differing(model, engine, [again])[1]
    assert [x.token_ids for x in drive(engine, [again])[0].items] == [x.token_ids for x in first.items]


@pytest.mark.parametrize("least", [0, 5, 9])
def test_stop_strings_and_stop_tokens(engines, least):
    model, engine = engines("qwen3")
    stop = StopRules(tuple(range(30, 36)), ("b", "zz", "mk"), least)
    requests = [request(n=6, tokens=17, seed=k, control=OpenLoop(17, sigma=1.0), stop=stop, want=ALL) for k in range(4)]
    count, wrong = differing(model, engine, requests)
    assert not wrong, f"{len(wrong)} of {count}"
    reasons = {item.finish_reason for done in drive(engine, requests) for item in done.items}
    assert {"stop", "stop_string"} <= reasons


def test_prompts_are_shared(engines):
    """vLLM keeps whole blocks of 128 tokens here, so this context has none to share: the counters say so."""
    _, engine = engines("llama")
    before = engine.stats()
    drive(engine, [request(n=4, tokens=5)])
    after = engine.stats()
    assert after["row_steps"] - before["row_steps"] == 20
    assert after["prompt_tokens"] - before["prompt_tokens"] == 28
    assert after["cached_tokens"] <= after["prompt_tokens"]


def test_what_cannot_fit_is_refused_and_others_go_through(engines):
    _, engine = engines("llama")
    with pytest.raises(ValueError, match="96 tokens"):
        engine.submit(request(length=90, tokens=10))
    options = (("path", "nowhere"), ("step_size", 1.0), ("steps", 1))
    law = Feedback(4, "aisp_ray.controls.value:gradient_feedback", options)
    with pytest.raises(ValueError, match="nowhere"):
        engine.submit(request(control=law))
    assert engine.num_pending == 0
    assert len(drive(engine, [request()])[0].items) == 4


def test_broken_logits_end_their_request_as_in_the_plain_engine(engines):
    """A token's embedding is NaN: who draws it has no more logits; the request beside it goes on."""
    model, engine = engines("llama")
    first = drive(PlainEngine(model), [request(n=1, tokens=8)])[0].items[0].token_ids
    at = next(t for t in range(1, 7) if first[t] not in first[:t])
    weights = (model.get_input_embeddings().weight, vllm_embeddings(engine))
    held = [weight[first[at]].clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight[first[at]] = torch.nan
    try:
        broken = engine.submit(request(n=1, tokens=8))
        engine.submit(request(n=1, tokens=at))
        found = {}
        while engine.num_pending:
            found.update(engine.step())
        error = found.pop(broken)
        assert isinstance(error, DataError)
        assert f"at token {at + 1} of particle 0" in str(error)
        assert [done.items[0].token_ids for done in found.values()] == [first[:at]]
        with pytest.raises(DataError, match=f"at token {at + 1} of particle 0"):
            drive(PlainEngine(model), [request(n=1, tokens=8)])
    finally:
        with torch.no_grad():
            for weight, row in zip(weights, held, strict=True):
                weight[first[at]] = row
    assert not differing(model, engine, [request(n=1, tokens=8)])[1]


def vllm_embeddings(engine):
    """The embedding matrix in vLLM's worker, which is of this process."""
    return engine.llm.collective_rpc(lambda worker: worker.model_runner.model.model.embed_tokens.weight)[0].data


def test_a_head_that_cannot_be_read_is_refused_for_the_means_that_need_it(engines):
    _, engine = engines("llama")
    entry = ScoreEntry(((5, 6, 7), (8, 9)), (1.0, -1.0))
    asked = request(control=OpenLoop(8, mean=ScoreLog((entry,), step_size=1.0)), iteration=1)
    engine.call("aisp_trust_head", False)
    try:
        with pytest.raises(ValueError, match=r"quantised.*policy\.engine=fast"):
            drive(engine, [asked])
        assert engine.num_pending == 0
        assert len(drive(engine, [request(control=OpenLoop(8, mean=MEAN, sigma=0.5))])[0].items) == 4
    finally:
        engine.call("aisp_trust_head", True)
    assert len(drive(engine, [asked])[0].items) == 4


@pytest.mark.parametrize("weight", [torch.ones(VOCABULARY, DIM, dtype=torch.int8), None], ids=["integers", "none"])
def test_a_quantised_head_agrees_with_nothing(weight):
    head = SimpleNamespace(weight=weight) if weight is not None else SimpleNamespace(qweight=torch.ones(4))
    processor = SimpleNamespace(soft_cap=None, scale=1.0, org_vocab_size=VOCABULARY)
    inner = SimpleNamespace(embed_tokens=head)
    plain = PlainHead(SimpleNamespace(logits_processor=processor, lm_head=head, model=inner))
    assert not plain.agrees(torch.ones(2, DIM), torch.ones(2, VOCABULARY), 1e9)


def test_a_request_alone_and_among_others(engines):
    """The share of equal sequences, in float32."""
    _, engine = engines("llama")
    asked = [request(n=4, seed=k, tokens=20, control=OpenLoop(20, sigma=1.0)) for k in range(8)]
    alone = [drive(engine, [one])[0] for one in asked]
    among = drive(engine, asked)
    same = [
        x.token_ids == y.token_ids
        for a, b in zip(alone, among, strict=True)
        for x, y in zip(a.items, b.items, strict=True)
    ]
    assert sum(same) == len(same)
