"""A vLLM engine that has been checked, and what else a policy reads of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aisp_ray.engine.vllm.engine import VllmEngine
from aisp_ray.engine.vllm.setup import VllmSettings
from aisp_ray.engine.vllm.verify import verify

log = logging.getLogger(__name__)


def build_vllm_engine(settings: VllmSettings, decode: Callable[[Sequence[int]], str] | None = None) -> VllmEngine:
    """An engine whose first tokens have been compared with what they must be.

    Raises:
        ValueError: no vLLM of a tested version, a model that vLLM does not load, or tokens that are wrong.
    """
    engine = VllmEngine(settings, decode)
    try:
        how = verify(engine)
    except BaseException:
        engine.close()
        raise
    log.info("engine: vLLM %s, checked against %s", engine.fingerprint["vllm"], how)
    return engine


def generation_config(source: str, kwargs: Mapping[str, Any]) -> Any:
    """The checkpoint's generation config; one without end tokens of its own where there is none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source, **kwargs)
    except OSError:
        return GenerationConfig()
