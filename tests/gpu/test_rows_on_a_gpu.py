"""Rows decoded on a GPU: those of `generate`, of eager steps, of any slot, width, tile and neighbour."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import WINDOW, bits, drive, generate, prompt, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.factory import build_engine
from aisp_ray.engine.means import Source
from aisp_ray.engine.rowcache import BLOCK
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.lm.head import Head
from aisp_ray.types import Sampling

WANT = frozenset({"logprob", "token_kl", "prelogits"})
FIXED = Ways(narrow=False)
N, TOKENS, ENDS = 5, 24, (3, 4, 5)
ARCHITECTURES = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt2", "lfm2", "granite")


def on_gpu(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return tiny(name, dtype).cuda()


def engine(model: Any, slots: int = 16, tile: int = 16, tokens: int = TOKENS, ways: Ways = Ways()) -> FastEngine:  # noqa: B008
    return FastEngine(model, slots, max_new_tokens=tokens, tile=tile, ways=ways)


def tokens_of(found: list) -> list:
    return [[(item.token_ids, item.finish_reason) for item in one.items] for one in found]


def mixture() -> list:
    """Sampling, stops, prefixes, means and wishes of every kind in one queue."""
    log = WeightLog((WeightEntry(0, (0.3, 0.3, 0.2, 0.1, 0.1), (12,) * 5, 1.0),))
    return [
        request(9, 5, 12, OpenLoop(12, log, 1.0), iteration=1, want=WANT),
        request(40, 7, 20, sampling=Sampling(1.0, top_p=0.9), seed=1),
        request(5, 6, 24, sampling=Sampling(0.8, top_k=10), seed=2, stop=StopRules(ENDS, min_new_tokens=4)),
        request(19, 4, 9, sampling=Sampling(branch_first=True), prefixes=((3, 4, 5), (), (9,), (1, 2)), seed=3),
        request(30, 8, 16, OpenLoop(16, None, 2.0), seed=4, stop=StopRules(tuple(range(3, 20)))),
    ]


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1.0), (torch.bfloat16, 0.8)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_are_those_of_generate(name: str, dtype: torch.dtype, least: float, flash: bool) -> None:
    """In bfloat16 a near-tie may fall either way; most rows have none."""
    if flash and (dtype == torch.float32 or name in ("mistral", "gemma2", "gemma3")):
        pytest.skip("FlashAttention computes neither float32, nor windows that cut, nor soft-caps")
    model = on_gpu(name, dtype)
    control = OpenLoop(TOKENS, None, 1.0)
    work = [request(n, N, TOKENS, control, seed=i, stop=StopRules(ENDS)) for i, n in enumerate((7, 2 * WINDOW, 150))]
    found, same, count = drive(engine(model, ways=Ways(flash=flash)), work), 0, 0
    for one, rollouts in zip(work, found, strict=True):
        noise = Source(one.key, Head(model), model.device, lambda _: []).noise(0, range(N), TOKENS)
        expected = generate(model, one.prompt_ids, noise, ENDS)
        same += sum(item.token_ids == tokens for item, tokens in zip(rollouts.items, expected, strict=True))
        count += N
    assert same >= least * count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_recorded_steps_give_the_bits_of_eager_steps(name: str, dtype: torch.dtype) -> None:
    model = on_gpu(name, dtype)
    recorded, eager = engine(model), engine(model)
    eager.slots.graphs.enabled = False
    found, expected = drive(recorded, mixture()), drive(eager, mixture())
    assert recorded.slots.graphs.enabled
    assert [bits(one) for one in found] == [bits(one) for one in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_a_row_has_equal_bits_in_every_slot_of_a_whole_tile(name: str, dtype: torch.dtype) -> None:
    model = on_gpu(name, dtype)
    asked = mixture()
    expected = {
        one.prompt_ids: bits(rollouts)
        for one, rollouts in zip(asked, drive(engine(model, ways=FIXED), asked), strict=True)
    }
    for order in (asked[::-1], asked[2:] + asked[:2]):
        found = drive(engine(model, ways=FIXED), order)
        assert [bits(one) for one in found] == [expected[one.prompt_ids] for one in order]
    for one in asked:
        assert bits(drive(engine(model, ways=FIXED), [one])[0]) == expected[one.prompt_ids]


@pytest.mark.parametrize("flash", [False, True])
def test_more_than_one_block_of_suffixes(flash: bool) -> None:
    tokens = 2 * BLOCK + 9
    model = on_gpu("llama", torch.bfloat16 if flash else torch.float32)
    asked = [request(9, 4, tokens, OpenLoop(tokens, None, 0.5), want=frozenset({"prelogits"}))]
    found = drive(engine(model, tokens=tokens, ways=Ways(flash=flash)), asked)
    for item in found[0].items:
        ids = [*prompt(9), *item.token_ids[:-1]]
        own = model.base_model(input_ids=torch.tensor([ids], device="cuda")).last_hidden_state[0, 8:].float().cpu()
        apart = (torch.as_tensor(item.prelogits) - own).abs().max() / own.abs().max()
        assert apart < (0.1 if flash else 1e-4)


def test_two_tiles_and_narrow_steps_give_the_tokens_of_one_wide_tile() -> None:
    model = on_gpu("llama")
    one = drive(engine(model, 32, 32, ways=FIXED), mixture())
    two = engine(model, 64, 32)
    found = drive(two, mixture())
    assert len(two.slots.tiles) == 2
    assert tokens_of(found) == tokens_of(one)


def test_top_p_by_candidates_gives_the_tokens_of_the_whole_vocabulary() -> None:
    from aisp_ray.engine.draws import BEYOND, pick

    logits = 4 * torch.randn(64, 50000, generator=torch.Generator().manual_seed(0)).cuda()
    uniform = torch.linspace(1e-6, 1 - 1e-6, 64, dtype=torch.float64, device="cuda")
    for sampling in (Sampling(1.0, 0.95), Sampling(0.7, 0.9), Sampling(1.0, top_k=50)):
        whole, found = pick(logits, sampling, uniform), pick(logits, sampling, uniform, 4096)
        sure = found != BEYOND
        assert sure.any()
        assert torch.equal(found[sure], whole[sure])


def test_the_check_at_load_passes_with_flash_attention() -> None:
    built: Any = build_engine(on_gpu("llama", torch.bfloat16), slots=8, max_new_tokens=16, ways=Ways(flash=True))
    assert built.fingerprint["engine"] == "fast"
    assert built.fingerprint["flash"]
