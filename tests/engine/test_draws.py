"""Tokens drawn from logits: the inverse CDF of the whole vocabulary, and no token where there are no numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.draws import BROKEN, branch, pick, supported
from aisp_ray.engine.factory import build_engine
from aisp_ray.engine.plain import PlainEngine
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.errors import DataError
from aisp_ray.lm.checks import probe
from aisp_ray.types import Sampling

KINDS = (Sampling(0.0), Sampling(1.0), Sampling(0.7), Sampling(1.0, top_p=0.8), Sampling(1.3, top_k=3))


def some_logits(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    logits = 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(size + seed))
    logits[:, ::3] = -torch.inf
    return logits


@pytest.mark.parametrize("size", [2, 101, 512, 515, 1024, 4096 + 64, 49152])
def test_a_token_is_the_inverse_cdf_of_the_whole_vocabulary(size: int) -> None:
    logits = some_logits(16, size)
    uniform = torch.linspace(1e-9, 1 - 1e-9, 16, dtype=torch.float64)
    cdf = logits.softmax(-1).double().cumsum(-1)
    expected = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    found = pick(logits, Sampling(1.0), uniform)
    assert found.tolist() == expected.tolist()
    alone = [int(pick(logits[i : i + 1], Sampling(1.0), uniform[i : i + 1])) for i in range(16)]
    assert found.tolist() == alone


@pytest.mark.parametrize("size", [101, 2048])
def test_a_uniform_at_either_end_finds_a_token_that_has_mass(size: int) -> None:
    logits = torch.full((2, size), -torch.inf)
    logits[:, size // 2] = 0.0
    for number in (5e-324, 1 - 2**-53, 1.0):
        uniform = torch.full((2,), number, dtype=torch.float64)
        assert pick(logits, Sampling(1.0), uniform).tolist() == [size // 2] * 2


@pytest.mark.parametrize("sampling", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_where_logits_are_no_numbers_there_is_no_token(sampling: Sampling, bad: float) -> None:
    logits = some_logits(4, 1030)
    logits[1, 700] = bad
    logits[2] = torch.nan
    found = pick(logits, sampling, torch.full((4,), 0.4, dtype=torch.float64))
    assert (found == BROKEN).tolist() == [False, True, True, False]
    ranks = torch.zeros(4, dtype=torch.int64)
    assert (branch(logits, ranks) == BROKEN).tolist() == [False, True, True, False]


def nucleus(base: torch.Tensor, top_p: float) -> set[int]:
    """Plainly: tokens by rank until their probability reaches top_p."""
    mass = base.softmax(-1).double()
    kept, reached = set(), 0.0
    for token in sorted(range(len(base)), key=lambda token: (-float(base[token]), token)):
        if reached >= top_p:
            break
        kept.add(token)
        reached += float(mass[token])
    return kept


@pytest.mark.parametrize("size", [101, 1030, 3000])
@pytest.mark.parametrize("spread", [0.05, 3.0])  # a nucleus of most of the vocabulary, and one of a few tokens
@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_a_supported_token_is_one_of_the_uncontrolled_nucleus(size: int, spread: float, top_p: float) -> None:
    base, logits = spread * some_logits(5, size), some_logits(5, size, seed=1)
    logits[:, 7] = -torch.inf  # forbidden: it does not count in the nucleus
    base[:, 7] = 20.0
    found = supported(logits, base, top_p)
    for row in range(5):
        expected = nucleus(torch.where(logits[row].isfinite(), base[row], -torch.inf), top_p)
        assert set(found[row].isfinite().nonzero()[:, 0].tolist()) == expected
        assert all(found[row, token] == logits[row, token] for token in expected)


def test_a_nucleus_among_equals_ends_at_the_lower_tokens() -> None:
    assert (
        supported(torch.zeros(1, 2048), torch.zeros(1, 2048), 0.5)[0].isfinite().tolist()
        == [True] * 1024 + [False] * 1024
    )


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0)])
def test_where_the_uncontrolled_logits_are_no_numbers_there_is_no_token(sampling: Sampling) -> None:
    base = some_logits(3, 2048)
    base[1, 5] = torch.nan
    found = pick(supported(some_logits(3, 2048), base, 0.9), sampling, torch.full((3,), 0.4, dtype=torch.float64))
    assert (found == BROKEN).tolist() == [False, True, False]


def breaking(position: int) -> Any:
    """A model whose pre-logits are NaN at this position and from then on."""
    model = tiny("llama")

    def spoil(_: Any, args: tuple, kwargs: dict, out: Any) -> Any:
        if "position_ids" in kwargs:  # not while a prompt is read
            out.last_hidden_state[kwargs["position_ids"] >= position] = torch.nan
        return out

    model.base_model.register_forward_hook(spoil, with_kwargs=True)
    return model


@pytest.mark.parametrize("kind", ["fast", "stacked", "plain"])
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0)])
def test_logits_that_break_while_decoding_end_the_request_and_no_other(kind: str, sampling: Sampling) -> None:
    def engine(model: Any) -> Any:
        if kind == "plain":
            return PlainEngine(model)
        return FastEngine(model, 8, max_new_tokens=10, tile=8, ways=Ways(ahead=kind == "stacked"))

    long = request(20, 4, 10, OpenLoop(10, None, 1.0), sampling=sampling)
    short = request(7, 4, 10, OpenLoop(10, None, 1.0), sampling=sampling, seed=1)
    (expected,) = drive(engine(tiny("llama")), [short])
    broken = engine(breaking(24))
    tickets = [broken.submit(one) for one in (long, short)]
    found: dict[int, Any] = {}
    while broken.num_pending:
        found |= dict(broken.step())
    error = found[tickets[0]]
    assert isinstance(error, DataError)
    assert "NaN or infinite in torch.float32 at token 5 of particle 0" in str(error)
    assert [item.token_ids for item in found[tickets[1]].items] == [item.token_ids for item in expected.items]
    if kind != "plain":  # every slot and prompt is free again
        assert not broken.slots.live
        assert all(prefix.users == 0 for prefix in broken.store._held.values())


@pytest.mark.parametrize("damaged", ["norm", "one token"])  # the latter is met in decoding only
@pytest.mark.parametrize("kind", ["fast", "expanded", "plain"])
def test_a_model_without_numbers_is_refused_in_one_sentence(
    kind: str, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llama")
    with torch.no_grad():
        if damaged == "norm":
            model.model.norm.weight[3] = torch.nan
        else:
            model.model.embed_tokens.weight[probe(5, VOCABULARY)[3]] = torch.inf
    with pytest.raises(ValueError, match=r"NaN or infinite in torch\.float32.*policy\.dtype"):
        build_engine(model, kind, 4, max_new_tokens=10)
    assert not caplog.records
