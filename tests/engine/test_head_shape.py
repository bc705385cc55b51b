"""Noise shaped by the LM head: the map against its definition, and equal tokens in all engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import bits, drive, generate, request, tiny

from aisp_ray.controls.laws import HeadShape, OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine import _shape
from aisp_ray.engine._source import Source
from aisp_ray.engine.expanded import ExpandedEngine
from aisp_ray.engine.fast import FastEngine
from aisp_ray.engine.plain import PlainEngine
from aisp_ray.lm.head import Head
from aisp_ray.types import Sampling

TOKENS, N, SHAPE = 12, 6, HeadShape()
LOG = WeightLog(
    (
        WeightEntry(0, (0.1, 0.2, 0.3, 0.2, 0.1, 0.1), (12, 3, 9, 12, 12, 5), 1.0),
        WeightEntry(1, (0.5, 0.1, 0.1, 0.1, 0.1, 0.1), (12, 12, 2, 8, 12, 12), 1.0, step_size=0.5),
    )
)
WANT = frozenset({"logprob", "prelogits"})


def head(rows: int = 40, dim: int = 8) -> torch.Tensor:
    """Rows with a common mean, and directions of very different size."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, dim, generator=generator) * torch.logspace(0, -2, dim) + torch.linspace(-3, 2, dim)


def plain_matrix(weight: torch.Tensor, ridge: float) -> np.ndarray:
    """S of the docstring in float64, C by `numpy.cov`."""
    W = weight.double().numpy()
    C = np.cov(W.T, bias=True)
    values, vectors = np.linalg.eigh(C + ridge * np.trace(C) / len(C) * np.eye(len(C)))
    S = vectors @ np.diag(values**-0.5) @ vectors.T
    return S * np.sqrt(np.trace(C) / np.trace(S @ C @ S))


@pytest.mark.parametrize("ridge", [0.01, 0.1, 10.0])
def test_the_map_is_the_scaled_inverse_root_of_the_heads_covariance(ridge):
    weight = head()
    S = HeadShape(ridge).matrix(weight)
    np.testing.assert_allclose(S.numpy(), plain_matrix(weight, ridge), rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(S, S.T)


def test_a_tiny_ridge_makes_the_logits_noise_isotropic_and_a_huge_one_none_of_it():
    weight = head()
    centred = weight.double() - weight.double().mean(0)
    S = HeadShape(1e-9).matrix(weight).double()
    moved = centred @ S  # logits of unit noise
    variances = torch.linalg.svdvals(moved) ** 2
    torch.testing.assert_close(
        variances, torch.full((8,), float(centred.square().sum() / 8)).double(), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(HeadShape(1e9).matrix(weight), torch.eye(8))


def test_a_common_shift_and_the_size_of_the_heads_rows_change_nothing():
    weight = head().double()
    S = SHAPE.matrix(weight)
    torch.testing.assert_close(SHAPE.matrix(weight + 5.0), S, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(SHAPE.matrix(30 * weight), S, rtol=1e-3, atol=1e-4)


def test_a_head_of_integers_is_refused():
    with pytest.raises(ValueError, match="floating point"):
        SHAPE.matrix(torch.ones(4, 3, dtype=torch.int8))


def test_density_ratios_of_what_is_added_are_those_of_the_whitened_coordinates():
    S, sigma, alpha = SHAPE.matrix(head()).double(), 0.7, 0.9
    u, v = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)).double()
    normal = lambda mean: torch.distributions.MultivariateNormal(S @ mean, sigma**2 * S @ S.T)  # noqa: E731
    cost = normal(u).log_prob(S @ v) - normal(alpha * u).log_prob(S @ v)
    expected = ((1 - alpha) * u @ v - 0.5 * (1 - alpha**2) * u @ u) / sigma**2
    torch.testing.assert_close(cost, expected)


# untied, tied, tied and capped, with a bias, scaled
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi", "granite"])
def test_tokens_equal_generate_under_the_shaped_noise(name):
    model = tiny(name)
    one = request(9, N, TOKENS, OpenLoop(TOKENS, LOG, 1.0, shape=SHAPE), iteration=2)
    source = Source(one.key, Head(model), model.device, lambda _: [])
    whitened = LOG.fold(source, TOKENS) + source.noise(2, range(N), TOKENS)  # [n, t, d]
    S = torch.from_numpy(plain_matrix(model.get_output_embeddings().weight.detach(), 0.1)).float()
    expected = generate(model, one.prompt_ids, whitened @ S, ())
    assert [item.token_ids for item in PlainEngine(model).run(one).items] == expected
    isotropic = PlainEngine(model).run(request(9, N, TOKENS, OpenLoop(TOKENS, LOG, 1.0), iteration=2))
    assert [item.token_ids for item in isotropic.items] != expected


def test_a_decay_shrinks_what_is_added_along_the_response():
    model = tiny("llama")
    one = request(9, N, TOKENS, OpenLoop(TOKENS, LOG, 2.0, decay=0.8), iteration=2)
    source = Source(one.key, Head(model), model.device, lambda _: [])
    v = LOG.fold(source, TOKENS) + 2.0 * source.noise(2, range(N), TOKENS)
    expected = generate(model, one.prompt_ids, v * torch.tensor([0.8**t for t in range(TOKENS)])[:, None], ())
    found = PlainEngine(model).run(one)
    assert [item.token_ids for item in found.items] == expected
    even = PlainEngine(model).run(request(9, N, TOKENS, OpenLoop(TOKENS, LOG, 2.0), iteration=2))
    assert [item.token_ids for item in even.items] != expected
    for item, other in zip(found.items, even.items, strict=True):  # all else is of the coordinates v
        assert item.control_inner == pytest.approx(other.control_inner, rel=1e-5)


WORK = {
    "noise": [request(9, N, TOKENS, OpenLoop(TOKENS, None, 1.0, shape=SHAPE), want=WANT)],
    "mean and noise": [request(9, N, TOKENS, OpenLoop(TOKENS, LOG, 1.0, shape=SHAPE), iteration=2, want=WANT)],
    "mean alone": [request(9, N, TOKENS, OpenLoop(TOKENS, LOG, 0.0, shape=SHAPE), iteration=2)],
    "everything": [
        request(
            9, N, TOKENS, OpenLoop(7, LOG, 1.0, (0.0,) + (1.0,) * 5, (1.0,) * 5 + (2.0,), True, SHAPE), iteration=2
        ),
    ],
    "decaying": [
        request(9, N, TOKENS, OpenLoop(TOKENS, LOG, 1.0, decay=0.9), iteration=2, want=WANT),
        request(9, N, TOKENS, OpenLoop(TOKENS, LOG, 0.5, shape=SHAPE, decay=1.1), iteration=2, seed=1),
        request(5, N, TOKENS, OpenLoop(TOKENS, None, 1.0), seed=2),
    ],
    # of a seed whose draws lie clear of the tokens' bounds: at rounding's distance engines may differ
    "sampled": [request(9, N, TOKENS, OpenLoop(TOKENS, None, 0.7, shape=SHAPE), sampling=Sampling(0.8), seed=2)],
    "two shapes and none at once": [
        request(9, N, TOKENS, OpenLoop(TOKENS, None, 1.0, shape=SHAPE)),
        request(9, N, TOKENS, OpenLoop(TOKENS, None, 1.0, shape=HeadShape(1.0)), seed=1),
        request(5, N, TOKENS, OpenLoop(TOKENS, None, 1.0), seed=2),
        request(5, N, TOKENS, seed=3),
    ],
}


@pytest.mark.parametrize("work", list(WORK))
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi"])
def test_all_engines_give_the_plain_engines_rows(name, work):
    model = tiny(name)
    expected = drive(PlainEngine(model), WORK[work])
    fast = drive(FastEngine(model, slots=8, max_new_tokens=TOKENS, tile=4), WORK[work])
    expanded = drive(ExpandedEngine(model), WORK[work])
    for plain, others in zip(expected, zip(fast, expanded, strict=True), strict=True):
        for other in others:
            assert [item.token_ids for item in other.items] == [item.token_ids for item in plain.items]
            for one, two in zip(plain.items, other.items, strict=True):
                assert two.control_inner == pytest.approx(one.control_inner, rel=1e-4, abs=1e-4)
                assert two.control_square == pytest.approx(one.control_square, rel=1e-4, abs=1e-4)
            assert other.control_norm == pytest.approx(plain.control_norm, rel=1e-5)


def test_neighbours_change_no_bit_of_a_shaped_row():
    model = tiny("llama")
    probe = lambda: request(11, N, TOKENS, OpenLoop(TOKENS, LOG, 1.0, shape=SHAPE), iteration=2, want=WANT)  # noqa: E731
    others = [one for work in WORK.values() for one in work]
    engine = lambda slots: FastEngine(model, slots, max_new_tokens=TOKENS, tile=8)  # noqa: E731
    (alone,) = drive(engine(16), [probe()])
    for found in (drive(engine(16), [*others, probe()])[-1], drive(engine(8), [probe(), *others])[0]):
        assert bits(found) == bits(alone)


def test_the_map_is_computed_once_an_engine():
    engine = FastEngine(tiny("llama"), slots=8, max_new_tokens=TOKENS, tile=4)
    drive(engine, WORK["noise"])
    first = engine.shapes.get(OpenLoop(shape=HeadShape()))
    drive(engine, WORK["two shapes and none at once"])
    assert engine.shapes.get(OpenLoop(shape=HeadShape())) is first
    assert len(engine.shapes._held) == 2
    assert engine.shapes.get(OpenLoop()) is None


def test_products_of_one_size_give_each_vector_the_same_bits():
    S, v = SHAPE.matrix(head()), torch.randn(300, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(_shape.apply(S, v), v @ S)
    for count in (1, 7, 128, 129):
        assert torch.equal(_shape.apply(S, v[:count]), _shape.apply(S, v)[:count])
