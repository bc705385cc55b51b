"""The plain engine against transformers' own `generate`, and the sums it reports against direct computation."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.engine.means import Source
from aisp_ray.engine.plain import ExpandedEngine, PlainEngine
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.types import Proposal, Sampling

PROMPT = (5, 9, 2, 33, 17)
KEY = 1234567


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def run(model, proposal, max_new_tokens=12, stop=None, particles=None, decode=None):
    engine = PlainEngine(model, decode)
    engine.submit(RolloutRequest(PROMPT, KEY, proposal, max_new_tokens, stop or StopRules(), particles))
    ((_, result),) = engine.step()
    if isinstance(result, Exception):
        raise result
    return result


def generate(model, added, max_new_tokens=12):
    """transformers' greedy decode with `added` [n, t, d] put on the LM-head input, position by position."""
    state = {"t": 0}

    def hook(_module, args):
        z = args[0].clone()
        if state["t"] < added.shape[1]:
            z[:, -1] += added[:, state["t"]]
        state["t"] += 1
        return (z, *args[1:])

    handle = model.lm_head.register_forward_pre_hook(hook)
    ids = torch.tensor([PROMPT]).expand(added.shape[0], -1)
    out = model.generate(ids, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=None, pad_token_id=0)
    handle.remove()
    return [tuple(row[len(PROMPT) :].tolist()) for row in out]


def noise(model, iteration, n, horizon):
    return Source(KEY, PlainEngine(model).head, "cpu", lambda ids: []).noise(iteration, range(n), horizon)


def test_perturbed_tokens_equal_those_of_generate(model):
    proposal = Proposal(3, 6, OpenLoop(horizon=8, sigma=0.7))
    result = run(model, proposal)
    expected = generate(model, 0.7 * noise(model, 3, 6, 8))
    assert [item.token_ids for item in result.items] == expected
    assert len(set(expected)) > 1  # the perturbation does something


def test_a_decay_shrinks_what_is_added_along_the_response(model):
    log = WeightLog((WeightEntry(0, (0.25, 0.75), (8, 6), sigma=0.5),))
    v = noise(model, 0, 2, 8)
    mean = torch.zeros(8, 32)
    mean[:6] = 0.5 * (0.25 * v[0, :6] + 0.75 * v[1, :6])
    mean[6:] = 0.5 * v[0, 6:]
    added = (mean + 0.7 * noise(model, 3, 6, 8)) * torch.tensor([0.8**t for t in range(8)])[:, None]
    found = run(model, Proposal(3, 6, OpenLoop(8, log, 0.7, decay=0.8)))
    assert [item.token_ids for item in found.items] == generate(model, added)
    even = run(model, Proposal(3, 6, OpenLoop(8, log, 0.7)))
    assert [item.token_ids for item in even.items] != [item.token_ids for item in found.items]
    for item, other in zip(found.items, even.items, strict=True):  # all else is of the coordinates v
        assert item.control_inner == pytest.approx(other.control_inner, rel=1e-5)


def test_a_scale_is_a_factor_of_all_that_is_added(model):
    log = WeightLog((WeightEntry(0, (0.25, 0.75), (8, 6), sigma=2.0),))
    halved = WeightLog((WeightEntry(0, (0.25, 0.75), (8, 6), sigma=1.0),))
    scaled, plain = (
        run(model, Proposal(1, 6, law)) for law in (OpenLoop(8, log, 2.0, scale=0.5), OpenLoop(8, halved, 1.0))
    )
    assert [item.token_ids for item in scaled.items] == [item.token_ids for item in plain.items]
    for item, other in zip(scaled.items, plain.items, strict=True):  # sums are of v, before the scale
        assert item.control_inner == pytest.approx(4 * other.control_inner, rel=1e-5)
    with pytest.raises(ValueError, match="noise_scale"):
        run(model, Proposal(1, 6, OpenLoop(8, log, 2.0, scale=None)))


def test_zero_sigma_is_the_greedy_base_decode(model):
    (base,) = generate(model, torch.zeros(1, 1, 32))
    result = run(model, Proposal(0, 3, OpenLoop(horizon=12, sigma=0.0)))
    assert {item.token_ids for item in result.items} == {base}


def test_the_mean_of_a_weight_log_is_the_weighted_mean_of_live_particles(model):
    entry = WeightEntry(0, (0.25, 0.75), (2, 4), sigma=0.5)
    control = OpenLoop(horizon=6, mean=WeightLog((entry,)), sigma=0.0)
    eps = noise(model, 0, 2, 6)
    mean = torch.zeros(6, 32)
    mean[:2] = 0.5 * (0.25 * eps[0, :2] + 0.75 * eps[1, :2])
    mean[2:4] = 0.5 * eps[1, 2:4]  # only particle 1 still lives there
    result = run(model, Proposal(1, 2, control))
    assert result.control_norm == pytest.approx(float(mean.norm()), rel=1e-5)
    assert [item.token_ids for item in result.items] == generate(model, mean.expand(2, -1, -1))
    assert result.items[0].control_square == pytest.approx(float(mean.square().sum()), rel=1e-5)


def test_inner_products_count_live_positions_only(model):
    control = OpenLoop(horizon=6, mean=WeightLog((WeightEntry(0, (1.0,), (6,), sigma=0.5),)), sigma=0.3)
    full = run(model, Proposal(1, 1, control)).items[0]
    stop = StopRules(token_ids=(full.token_ids[2],))
    cut_at = full.token_ids.index(full.token_ids[2]) + 1
    ended = run(model, Proposal(1, 1, control), stop=stop).items[0]
    u = 0.5 * noise(model, 0, 1, 6)[0]
    v = u + 0.3 * noise(model, 1, 1, 6)[0]
    assert ended.finish_reason == "stop"
    assert ended.num_tokens == cut_at
    assert ended.control_inner == pytest.approx(float((u * v)[:cut_at].sum()), rel=1e-4)
    assert full.control_inner == pytest.approx(float((u * v).sum()), rel=1e-4)


def test_a_particle_does_not_depend_on_which_others_are_drawn(model):
    proposal = Proposal(0, 8, OpenLoop(horizon=12, sigma=0.5), Sampling(temperature=1.0, top_p=0.9))
    whole = run(model, proposal)
    part = run(model, proposal, particles=(4, 5, 6, 7))
    assert [item.token_ids for item in part.items] == [item.token_ids for item in whole.items[4:]]


def test_log_probabilities_equal_teacher_forcing(model):
    proposal = Proposal(0, 4, OpenLoop(horizon=12, sigma=0.7), want=frozenset({"logprob", "token_kl", "prelogits"}))
    for item in run(model, proposal).items:
        ids = torch.tensor([[*PROMPT, *item.token_ids]])
        logits = model(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(item.token_ids)[:, None]).sum()
        assert item.logprob == pytest.approx(float(expected.detach()), abs=1e-4)
        assert item.token_kl > 0
        assert item.prelogits.shape == (12, 32)


def test_continued_prefixes_are_kept_and_not_counted(model):
    whole = run(model, Proposal(0, 2, OpenLoop(horizon=12, sigma=0.5)))
    prefixes = (whole.items[0].token_ids[:5], ())
    again = run(model, Proposal(0, 2, OpenLoop(horizon=12, sigma=0.5), prefixes=prefixes))
    assert again.items[0].token_ids == whole.items[0].token_ids
    assert [item.num_generated_tokens for item in again.items] == [7, 12]


def test_branching_expands_the_most_likely_first_tokens(model):
    result = run(model, Proposal(0, 5, sampling=Sampling(branch_first=True), max_new_tokens=1), max_new_tokens=1)
    logits = model(torch.tensor([PROMPT])).logits[0, -1]
    best = logits.topk(5)
    assert [item.token_ids[0] for item in result.items] == best.indices.tolist()
    assert [item.first_logit for item in result.items] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_stop_strings_end_a_row(model):
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    (base,) = generate(model, torch.zeros(1, 1, 32))
    item = run(model, Proposal(0, 1), stop=StopRules(strings=(f" {base[3]}",)), decode=decode).items[0]
    assert item.finish_reason == "stop_string"
    assert item.num_tokens <= 4


@pytest.mark.parametrize("engine", [PlainEngine, ExpandedEngine, FastEngine])
def test_a_stop_string_before_the_minimum_is_passed_over(model, engine):
    decode = lambda ids: "".join(f"<{token}>" for token in ids)  # noqa: E731
    (base,) = generate(model, torch.zeros(1, 1, 32))
    strings = (f"<{base[1]}>", f"<{base[8]}>")
    start = next(at for at in range(4, 12) if base[at] in (base[1], base[8]))
    one = engine(model, decode=decode)
    one.submit(RolloutRequest(PROMPT, KEY, Proposal(0, 1), 12, StopRules((), strings, min_new_tokens=5)))
    found = []
    while not found:
        found = one.step()
    (item,) = found[0][1].items
    assert (item.finish_reason, item.token_ids) == ("stop_string", base[: start + 1])


def test_a_stop_string_that_counts_starts_behind_the_minimum():
    decode = lambda ids: "".join(chr(token) for token in ids)  # noqa: E731
    text = "ab.cd.ef"
    ids = [ord(letter) for letter in text]
    starts = [
        StopRules(strings=(".", "ef"), min_new_tokens=least).string_start(text, ids, decode) for least in range(9)
    ]
    assert starts == [2, 2, 2, 2, 5, 5, 5, 6, None]
    assert StopRules(strings=("x",), min_new_tokens=3).string_start(text, ids, decode) is None


def test_a_prefix_that_leaves_no_room_is_refused(model):
    with pytest.raises(ValueError, match="not shorter than max_new_tokens=3"):
        run(model, Proposal(0, 1, prefixes=((4, 5, 6),)), max_new_tokens=3)


def test_the_end_token_is_forbidden_before_the_minimum(model):
    (base,) = generate(model, torch.zeros(1, 1, 32))
    item = run(model, Proposal(0, 1), stop=StopRules(token_ids=(base[0],), min_new_tokens=3)).items[0]
    assert base[0] not in item.token_ids[:3]


def test_sampled_tokens_follow_the_distribution(model):
    logits = model(torch.tensor([PROMPT])).logits[0, -1].detach()
    n = 4000
    proposal = Proposal(0, n, sampling=Sampling(temperature=1.5, top_k=5), max_new_tokens=1)
    drawn = [item.token_ids[0] for item in run(model, proposal, max_new_tokens=1).items]
    top = (logits / 1.5).topk(5)
    for token, p in zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True):
        assert drawn.count(token) / n == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n) + 1e-3)
    assert set(drawn) <= set(top.indices.tolist())
