"""What this process does to a GPU that it may share: memory, sums, logits. The driver is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aisp_ray.lm import attention, memory
from aisp_ray.lm.checkpoints import pin_arithmetic

GPU, TOTAL = torch.device("cuda", 0), 80 << 30


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {"free": TOTAL, "reserved": 0, "emptied": 0}
    monkeypatch.setattr(memory, "_share", 1.0)
    monkeypatch.setattr(memory, "_cache_stays", False)
    fakes = {
        "mem_get_info": lambda *_: (seen["free"], TOTAL),
        "memory_reserved": lambda *_: seen["reserved"],
        "set_per_process_memory_fraction": lambda share: seen.update(share=share),
        "empty_cache": lambda: seen.update(emptied=seen["emptied"] + 1),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return seen


def test_two_halves_of_a_gpu_fit_beside_each_other_whoever_begins(driver: dict[str, Any]) -> None:
    assert memory.free_bytes(GPU) == TOTAL
    memory.share_gpu(0.5)
    context = 1 << 30
    assert 2 * (driver["share"] * TOTAL + context) <= TOTAL
    assert memory.free_bytes(GPU) == pytest.approx(TOTAL / 2 - context, abs=1)  # nobody else has begun
    driver["reserved"] = 30 << 30
    assert memory.free_bytes(GPU) == pytest.approx(9 << 30, abs=1)
    driver["free"] = 5 << 30  # somebody takes more than is due
    assert memory.free_bytes(GPU) == 5 << 30
    driver["reserved"] = 41 << 30
    assert memory.free_bytes(GPU) == 0


def test_a_small_share_is_not_eaten_up_by_the_context(driver: dict[str, Any]) -> None:
    memory.share_gpu(0.01)
    assert driver["share"] == 0.005


def test_lack_of_memory_is_found_under_other_errors() -> None:
    lack, over = torch.OutOfMemoryError("as if"), RuntimeError("operation failed due to a previous error")
    over.__context__ = lack
    assert memory.out_of_memory(over) is lack
    chained = ValueError("x")
    chained.__cause__ = lack
    assert memory.out_of_memory(chained) is lack
    assert memory.out_of_memory(ValueError("x")) is None


def test_a_cache_that_must_stay_is_not_emptied(driver: dict[str, Any]) -> None:
    memory.give_back(GPU)
    memory.keep_cache()
    memory.give_back(GPU)
    memory.give_back(torch.device("cpu"))
    assert driver["emptied"] == 1


@pytest.fixture
def matmul() -> Iterator[Any]:
    settings, precision = torch.backends.cuda.matmul, torch.get_float32_matmul_precision()
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = [getattr(settings, name) for name in names]
    yield settings
    for name, value in zip(names, before, strict=True):
        setattr(settings, name, value)
    torch.set_float32_matmul_precision(precision)


def test_products_add_up_in_float32_whatever_was_chosen(matmul: Any) -> None:
    matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = True
    torch.set_float32_matmul_precision("medium")
    pin_arithmetic()
    assert not matmul.allow_bf16_reduced_precision_reduction
    assert not matmul.allow_fp16_reduced_precision_reduction
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("heads", [(3, 2), (4,)])
def test_logits_of_16_bits_leave_the_product_in_float32(
    heads: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    draw = lambda count: (3 * torch.randn(*heads, count, 24, generator=g)).bfloat16()  # noqa: E731
    query, keys, values, scale = draw(5), draw(40), draw(40), 24**-0.5
    whole = attention.partial(query.float() * scale, keys.float(), values.float(), None, None)

    def computed() -> tuple[torch.Tensor, torch.Tensor]:
        given, left = attention.scaled(query, scale)
        return attention.partial(given, keys, values, None, None, left)

    rounded = computed()
    monkeypatch.setattr(attention, "_sums_in_float32", lambda _: True)
    monkeypatch.setattr(torch, "bmm", lambda a, b, out_dtype: torch.matmul(a.to(out_dtype), b.to(out_dtype)))
    found = computed()
    assert (found[1] - whole[1]).abs().max() < 1e-4 < (rounded[1] - whole[1]).abs().max()
    assert (found[0] - whole[0]).abs().max() < (rounded[0] - whole[0]).abs().max()
