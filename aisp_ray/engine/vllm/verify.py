"""Checks at load of a vLLM engine: a few perturbed tokens against what they must be.

Where the weights are small enough to be loaded a second time, pre-logits and tokens are compared with the model's own
eager forward by transformers. Elsewhere an unperturbed decode through the seam is compared with vLLM's own, and the
perturbed tokens with vLLM's logits of the pre-logits that they must have been picked from.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.engine.vllm.engine import VllmEngine
from aisp_ray.noise import normal, split_key
from aisp_ray.types import Proposal, Rollouts

_TOKENS, _ROWS, _SIGMA = 6, 2, 1.0
_LONGEST_WINDOW = 2048
_MOST_WEIGHTS = 4 << 30  # bytes of a checkpoint that is loaded a second time, and at most a quarter of the free memory
# largest difference, as a part of the root mean square
TOLERANCE = {"torch.float32": 2e-3, "torch.float16": 5e-2, "torch.bfloat16": 2.5e-1}


def verify(engine: VllmEngine) -> str:
    """Returns what it was compared with.

    Raises:
        ValueError: tokens or pre-logits differ by more than rounding.
    """
    allowed = TOLERANCE.get(engine.fingerprint["dtype"], 2.5e-1)
    config = engine.config
    prompts = [_prompt(length, config.vocab_size) for length in _lengths(engine, config)]
    steered = [_decode(engine, ids, _SIGMA) for ids in prompts]
    engine.call("aisp_trust_head", engine.call("aisp_head_agrees", 0, allowed))
    model = _load_again(engine)
    for ids, rollouts in zip(prompts, steered, strict=True):
        for item in rollouts.items:
            z = torch.from_numpy(item.prelogits)
            if model is not None:
                z = _compare_prelogits(model, [*ids, *item.token_ids[:-1]], z, allowed)
            _check_tokens(_logits(engine, model, z + _noise(ids, item.particle, z.shape)), item.token_ids, allowed)
        if model is None:
            _compare_unperturbed(engine, ids)
    if model is not None:
        return "the model's own forward"
    return "vLLM's own unperturbed decode and its logits of the perturbed pre-logits"


def _lengths(engine: VllmEngine, config: Any) -> list[int]:
    """A short prompt, and one that crosses the model's window if it has a short one."""
    window = getattr(config, "sliding_window", None)
    longest = engine.settings.context - _TOKENS
    second = window + 3 if isinstance(window, int) and window <= _LONGEST_WINDOW else 9
    return [min(5, longest), min(second, longest)]


def _prompt(length: int, vocabulary: int) -> tuple[int, ...]:
    return tuple((7 * i * i + 13 * i + length) % vocabulary for i in range(length))


def _decode(engine: VllmEngine, ids: tuple[int, ...], sigma: float) -> Rollouts:
    law = OpenLoop(horizon=_TOKENS, sigma=sigma)
    proposal = Proposal(0, _ROWS, law, want=frozenset({"prelogits"}))
    engine.submit(RolloutRequest(ids, len(ids), proposal, _TOKENS, StopRules()))
    while True:
        for _, result in engine.step():
            if isinstance(result, Exception):
                raise result
            return result


def _noise(ids: tuple[int, ...], particle: int, shape: torch.Size) -> Tensor:
    """What was added at each position, float32 [t, d]."""
    count, dim = shape
    who = torch.full((count,), particle, dtype=torch.int64)
    key = split_key([len(ids)]).expand(count, 2)
    return _SIGMA * normal(key, torch.zeros_like(who), who, torch.arange(count), dim)


def _logits(engine: VllmEngine, model: Any, z: Tensor) -> Tensor:
    """The logits [t, V] of pre-logits [t, d]: the model's own, or vLLM's."""
    if model is None:
        return torch.from_numpy(pickle.loads(engine.call("aisp_logits", pickle.dumps(z.numpy()))))
    from aisp_ray.lm.head import Head

    with torch.no_grad():
        return Head(model)(z)


def _check_tokens(logits: Tensor, tokens: tuple[int, ...], allowed: float) -> None:
    """Each token must have the largest logit, up to rounding."""
    seen = logits[logits.isfinite()]
    gap = float((logits.max(-1).values - logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]).max())
    if not gap <= allowed * float(seen.square().mean().sqrt()):
        raise ValueError(
            "under vLLM the tokens of this model are not those of its perturbed pre-logits "
            f"(a logit gap of {gap:.2g}); use policy.engine=fast"
        )


def _compare_unperturbed(engine: VllmEngine, ids: tuple[int, ...]) -> None:
    own = engine.own_greedy(ids, _TOKENS)
    through = _decode(engine, ids, 0.0).items[0].token_ids
    if own != through:
        raise ValueError(
            f"under vLLM an unperturbed decode gives {list(through)} where vLLM's own gives {list(own)}; "
            "use policy.engine=fast"
        )


@torch.no_grad()
def _compare_prelogits(model: Any, ids: list[int], found: Tensor, allowed: float) -> Tensor:
    """The model's own pre-logits [t, d] of the last positions of ids, which those found must equal."""
    own = model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0].float()[-len(found) :]
    worst = float((own - found).abs().max() / own.square().mean().sqrt())
    if not worst <= allowed:
        raise ValueError(
            f"under vLLM the pre-logits of this model differ from its own forward by {worst:.2g} of their size "
            f"(allowed: {allowed:g}); use policy.engine=fast"
        )
    return own


def _load_again(engine: VllmEngine) -> Any:
    """The model by transformers on the CPU; None where its weights are too large, quantised or in another format."""
    import psutil
    from transformers import AutoModelForCausalLM

    size = _weight_bytes(engine)
    if size is None or size > min(_MOST_WEIGHTS, psutil.virtual_memory().available // 4):
        return None
    settings = engine.settings
    return AutoModelForCausalLM.from_pretrained(
        settings.model,
        revision=settings.revision,
        cache_dir=settings.cache_dir,
        trust_remote_code=settings.trust_remote_code,
        dtype=getattr(torch, settings.dtype),
        attn_implementation="eager",
    ).eval()


def _weight_bytes(engine: VllmEngine) -> int | None:
    """Bytes of the checkpoint's safetensors files on this disk; None: it has none, or they are quantised."""
    from huggingface_hub import snapshot_download

    settings = engine.settings
    if getattr(engine.config, "quantization_config", None) is not None:
        return None
    folder = Path(settings.model)
    if not folder.is_dir():
        try:
            found = snapshot_download(
                settings.model, revision=settings.revision, cache_dir=settings.cache_dir, local_files_only=True
            )
        except (OSError, ValueError):
            return None
        folder = Path(found)
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return sum(sizes) if sizes else None
