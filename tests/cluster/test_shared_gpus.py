"""An actor on a part of a GPU: what it tells PyTorch, before and after it is imported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aisp_ray.cluster import actors
from aisp_ray.lm import memory

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def spec(num_gpus: float, **more: Any) -> Any:
    return SimpleNamespace(num_gpus=num_gpus, threads=1, **more)


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(memory, "share_gpu", found.append)
    return found


def test_only_a_part_of_a_gpu_is_bounded_and_vllm_bounds_itself(shares: list[float]) -> None:
    for one in (spec(0), spec(1), spec(2), spec(0.5, engine="vllm"), spec(0.5, engine="fast"), spec(0.25)):
        actors.share_gpu(one)
    assert shares == [0.5, 0.25]


@pytest.mark.parametrize(
    ("torch_version", "name"), [("2.8.0", NAMES[1]), ("2.9.1+cu128", NAMES[0]), ("2.13.0", NAMES[0])]
)
def test_freed_memory_is_joined_again_unless_the_user_has_a_setting(
    torch_version: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "version", lambda _: torch_version)
    environment: dict[str, str] = {}
    monkeypatch.setattr(actors.os, "environ", environment)
    actors.prepare_process(spec(0))
    actors.prepare_process(spec(1, engine="vllm"))
    assert not set(NAMES) & set(environment)
    actors.prepare_process(spec(0.5))
    assert [environment.get(one) for one in NAMES].count("expandable_segments:True") == 1
    assert environment[name] == "expandable_segments:True"
    environment[name] = "max_split_size_mb:64"
    actors.prepare_process(spec(0.5))
    assert environment[name] == "max_split_size_mb:64"
