"""The fast engine gives the tokens of transformers' own `generate` under the same perturbation."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from tiny_models import drive, generate, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.factory import build_engine
from aisp_ray.engine.means import Source
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.lm.head import Head

SIGMA, TOKENS, N = 1.0, 14, 5
ENDS = (11, 12, 13, 14, 15)
LENGTHS = (5, 9, 23)  # below and beyond the windows
LOG = WeightLog((WeightEntry(0, (0.1, 0.2, 0.3, 0.4, 0.0), (14, 3, 9, 14, 14), SIGMA),))
SHARED = (
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "phi",
    "gpt2",
    "lfm2",
    "qwen3_moe",
    "gpt_oss",
    "granite",
)
WITHOUT_KERNELS = ("llama", "mistral", "gemma2", "gemma3", "lfm2", "gpt_oss")  # one of each kind of layer


def requests(iteration: int) -> list:
    control = OpenLoop(TOKENS, LOG if iteration else None, SIGMA)
    stop = StopRules(ENDS)
    return [
        request(length, N, TOKENS, control, seed=i, iteration=iteration, stop=stop) for i, length in enumerate(LENGTHS)
    ]


def expected(model: object, one: object) -> list[tuple[int, ...]]:
    source = Source(one.key, Head(model), model.device, lambda _: [])
    control = one.proposal.control
    mean = (
        torch.zeros(TOKENS, source.dim, device=model.device)
        if control.mean is None
        else control.mean.fold(source, TOKENS)
    )
    controls = mean + SIGMA * source.noise(one.proposal.iteration, range(N), TOKENS)
    return generate(model, one.prompt_ids, controls, ENDS)


@functools.cache
def of_generate(name: str) -> list[list[tuple[int, ...]]]:
    """What `generate` answers to the requests of the next test, by a model that no engine has touched."""
    model = tiny(name)
    return [expected(model, one) for one in requests(0) + requests(1)]


@pytest.mark.parametrize(
    ("name", "own"), [(name, own) for name in SHARED for own in (True, False) if own or name in WITHOUT_KERNELS]
)
def test_tokens_equal_generate_with_ragged_prompts_and_refill(name: str, own: bool) -> None:
    """own: with the engine's own kernels, where there is a compiler."""
    engine = FastEngine(tiny(name), slots=8, max_new_tokens=TOKENS, tile=4, ways=Ways(kernels=own))
    work = requests(0) + requests(1)  # 30 rows for 8 slots
    found = drive(engine, work)
    differing = [
        (item.token_ids, tokens)
        for expected_rows, rollouts in zip(of_generate(name), found, strict=True)
        for item, tokens in zip(rollouts.items, expected_rows, strict=True)
        if item.token_ids != tokens
    ]
    assert differing == []
    assert len({item.token_ids for rollouts in found for item in rollouts.items}) > 20  # the perturbation matters
    assert engine.stats()["prefix_hits"] == engine.stats()["prefix_misses"] == 3


@pytest.mark.parametrize("name", ["falcon_h1", "phi3_longrope"])
def test_a_model_that_cannot_share_falls_back_with_one_warning_and_equal_tokens(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(name)
    with caplog.at_level(logging.WARNING, "aisp_ray"):
        engine = build_engine(model, max_new_tokens=TOKENS)
    assert [record.levelname for record in caplog.records if record.name.startswith("aisp_ray")] == ["WARNING"]
    assert engine.fingerprint["engine"] == "expanded"
    work = requests(0)[:2] * 2
    for one, rollouts in zip(work, drive(engine, work), strict=True):
        assert [item.token_ids for item in rollouts.items] == expected(model, one)
    assert engine.stats()["prefix_hits"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_many_sequences_equal_generate(name: str) -> None:
    model = tiny(name)
    work = [
        request(3 + 4 * i, N, TOKENS, OpenLoop(TOKENS, None, SIGMA), seed=i, stop=StopRules(ENDS)) for i in range(12)
    ]
    found = drive(FastEngine(model, slots=16, max_new_tokens=TOKENS, tile=8), work)
    for one, rollouts in zip(work, found, strict=True):
        assert [item.token_ids for item in rollouts.items] == expected(model, one)
