"""FlashAttention over ragged prompts and suffixes: the call replaced by a plain one of PyTorch's own signature."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny_models import bits, drive, request, tiny
from torch import Tensor

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.cuda import flash
from aisp_ray.engine.factory import build_engine
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.lm import shims
from aisp_ray.lm.support import UnsupportedModelError
from aisp_ray.types import Sampling

FLASH = Ways(ahead=True, flash=True)
WANT = frozenset({"logprob", "prelogits"})


def plain(  # noqa: PLR0913
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    seqused_k: Tensor,
    num_splits: int | None = None,
) -> tuple[Tensor, ...]:
    """aten::_flash_attention_forward, one sequence after the other. What no sequence owns is left as it was."""
    assert (dropout_p, is_causal, return_debug_mask, num_splits) == (0.0, False, False, 1)
    assert {cum_seq_q.dtype, cum_seq_k.dtype, seqused_k.dtype} == {torch.int32}
    assert len(cum_seq_q) == len(cum_seq_k) == len(seqused_k) + 1
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    out, mass = torch.full_like(query, torch.nan), torch.full((query.shape[1], len(query)), torch.nan)
    group = query.shape[1] // key.shape[1]
    for i, count in enumerate(seqused_k.tolist()):
        start, stop = cum_seq_q[i : i + 2].tolist()
        assert stop - start <= max_q
        assert count <= max_k
        if stop == start:
            continue
        begin = int(cum_seq_k[i])
        keys, values = (t[begin : begin + count].repeat_interleave(group, 1) for t in (key, value))  # [k, H, D]
        logits = torch.einsum("qhd,khd->hqk", query[start:stop].float(), keys.float()) * scale
        mass[:, start:stop] = logits.logsumexp(-1)
        out[start:stop] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), values.float()).to(out.dtype)
    return out, mass, torch.empty(2), torch.empty(0), torch.empty(0)


@pytest.fixture(autouse=True)
def _plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shims, "_flash_attention", plain)


def work(*lengths: int, tokens: int = 20) -> list:
    stop = StopRules(tuple(range(3, 9)))
    laws = (OpenLoop(12, None, 1.0), OpenLoop(), OpenLoop(tokens, None, 0.5))
    sampling = (Sampling(), Sampling(1.0, 0.9), Sampling())
    return [
        request(n, 3 + i % 4, tokens, laws[i % 3], sampling=sampling[i % 3], seed=i, stop=stop, want=WANT)
        for i, n in enumerate(lengths)
    ]


def same(found: list, expected: list) -> None:
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one.items, other.items, strict=True):
            assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3", "lfm2", "gpt2"])
def test_rows_are_those_of_stacked_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "POOL", 16)  # grows, and loses what is not in use
    model, asked = tiny(name), work(9, 40, 5, 17, 9, 60, 2)
    mine = FastEngine(model, 16, max_new_tokens=20, tile=16, ways=FLASH)
    same(drive(mine, asked), drive(FastEngine(model, 16, max_new_tokens=20, tile=16), asked))
    (tile,) = mine.slots.tiles
    assert tile.cache.attention._size > 60
    assert tile.suffixes.blocks_for(19) == 1  # one recorded step for all lengths


def test_neighbours_and_free_slots_are_not_seen() -> None:
    model, asked = tiny("llama"), work(9, 30, 5, 17)
    engine = lambda: FastEngine(model, 16, max_new_tokens=20, tile=16, ways=FLASH)  # noqa: E731
    assert bits(drive(engine(), asked)[1]) == bits(drive(engine(), asked[1:2])[0])


@pytest.mark.parametrize("name", ["gpt_oss", "mistral"])
def test_windows_that_hold_prompt_and_response_are_allowed_and_sinks_are_kept(name: str) -> None:
    model, asked = tiny(name), work(4, 3, 2, tokens=8)
    mine = FastEngine(model, 16, max_new_tokens=8, tile=16, longest_prompt=4, ways=FLASH)
    same(drive(mine, asked), drive(FastEngine(model, 16, max_new_tokens=8, tile=16), asked))


@pytest.mark.parametrize(("longest", "fits"), [(None, False), (5, False), (4, True)])
def test_a_window_that_may_cut_is_left_to_the_other_path(longest: int | None, fits: bool) -> None:
    build = lambda: FastEngine(tiny("mistral"), 4, max_new_tokens=8, tile=4, longest_prompt=longest, ways=FLASH)  # noqa: E731
    if fits:
        assert build().fingerprint["flash"]
        return
    with pytest.raises(UnsupportedModelError, match=r"window of 12 tokens.*max_prompt_tokens=4 would fit"):
        build()


@pytest.mark.parametrize(("name", "reason"), [("gemma2", "soft-cap"), ("gemma3", "window")])
def test_what_it_cannot_compute_runs_stacked_and_says_so(
    name: str, reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(name)
    if name == "gemma2":  # it has windows as well
        model.config.sliding_window = 4096
        model = type(model)(model.config).eval()
        monkeypatch.setattr(flash, "problem", lambda *_: None)
    with caplog.at_level(logging.WARNING, "aisp_ray"):
        engine: Any = build_engine(model, slots=4, max_new_tokens=8, ways=FLASH)
    assert not engine.fingerprint["flash"]
    (line,) = caplog.records
    assert "runs without FlashAttention" in line.getMessage()
    assert reason in line.getMessage()


def test_wide_heads_are_refused() -> None:
    from aisp_ray.lm.prefixes import LayerLayout

    wide = LayerLayout(2, 320, 320, torch.bfloat16, torch.device("cpu"), None)
    assert "width 320" in str(flash.problem([None, wide], None, 8))
    uneven = LayerLayout(2, 64, 32, torch.bfloat16, torch.device("cpu"), None)
    assert "values of width 32" in str(flash.problem([uneven], None, 8))
