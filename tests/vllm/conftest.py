"""These tests run where vLLM is installed: `make test-vllm`. One engine per architecture serves a whole session."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore = [
        "test_vllm_engine.py",
        "test_vllm_policy.py",
        "test_vllm_parallel.py",
        "test_vllm_quantised.py",
        "test_vllm_ray.py",
    ]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """name -> (transformers' model, the vLLM engine of its saved weights)."""
    from aisp_ray.engine.vllm.engine import VllmEngine
    from aisp_ray.engine.vllm.setup import VllmSettings
    from tests.vllm.small_models import CONTEXT, saved

    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            model, folder = saved(name, tmp_path_factory.mktemp("models"))
            made[name] = model, VllmEngine(VllmSettings(folder, "float32", CONTEXT, slots=8), decode=letters)
        return made[name]

    yield get
    for _, engine in made.values():
        engine.close()


def letters(ids: Any) -> str:
    """A text for token ids: one letter each."""
    return "".join(chr(ord("a") + i % 26) for i in ids)
