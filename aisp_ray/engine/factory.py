"""Which engine steps a model, and the checks that it passes before it steps anything else.

An engine's LM head is compared with the model's own logits, the fast engine's pre-logits with the model's own eager
forward over the whole sequence (`lm/checks.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.base import Engine, RolloutRequest, StopRules
from aisp_ray.engine.plain import ExpandedEngine, PlainEngine
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.errors import DataError
from aisp_ray.lm.checks import TOLERANCE, own_states, probe, probe_lengths, require_equal
from aisp_ray.lm.head import Head
from aisp_ray.lm.support import UnsupportedModelError
from aisp_ray.types import Proposal, Rollouts

log = logging.getLogger(__name__)
KINDS = ("fast", "expanded", "plain")
LEAST_LONGEST = 16  # the check at load has prompts, too
_TOKENS = 6
_WAYS = Ways()


def build_engine(
    model: Any,
    kind: str = "fast",
    slots: int | str | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    max_new_tokens: int = 128,
    longest_prompt: int | None = None,
    ways: Ways = _WAYS,
) -> Engine:
    """An engine for a loaded causal language model.

    kind: "fast" shares prompts and refills slots, and becomes "expanded" with one warning where the model does not
    allow that; "plain" is the reference. slots: rows decoded at once by the fast engine; None or "auto" chooses from
    free memory. decode: token ids to text, which only stop strings need. longest_prompt: tokens of the longest prompt,
    by which the fast engine plans its memory on a GPU; None: any. ways: how the fast engine runs its steps.

    Before anything else it decodes a few tokens and compares them with the model's own forward.

    Raises:
        ValueError: an unknown kind or slot count, a model whose logits are not those of its LM head, or one that keeps
            no cache to decode from.
    """
    if kind not in KINDS:
        raise ValueError(f"engine {kind!r} is not known; it is one of {', '.join(KINDS)}")
    _require_numbers(model)
    engine: Any = None
    if kind == "fast":
        longest = _longest(model, longest_prompt)
        engine = _fast(model, ways, slots=slots, decode=decode, max_new_tokens=max_new_tokens, longest_prompt=longest)
    if engine is None:
        engine = (PlainEngine if kind == "plain" else ExpandedEngine)(model, decode)
        _require_steps(model, engine)
    verify_head(model, engine.head)
    return engine


def _require_steps(model: Any, engine: PlainEngine) -> None:
    """Raises ValueError for a model that cannot be read and then decoded token by token in several rows."""
    prompt = tuple(probe(5, engine.head.weight.shape[0]))
    try:
        engine.run(RolloutRequest(prompt, 0, Proposal(0, 2, OpenLoop(horizon=2, sigma=0.0)), 2, StopRules()))
    except torch.OutOfMemoryError:
        raise
    except DataError as error:
        raise _without_numbers(model, engine.head.dtype) from error
    except Exception as error:  # whatever a model of another kind raises
        raise ValueError(
            f"{type(model).__name__} cannot be decoded here: it keeps no cache of the kind that attention layers have "
            f"({type(error).__name__}: {error}), as Mamba and RWKV do; choose a model with attention layers, or "
            "policy.engine=vllm where vLLM knows it"
        ) from error


@torch.no_grad()
def _require_numbers(model: Any) -> None:
    """Raises ValueError for a model that has no numbers for a prompt of two tokens."""
    logits = model(input_ids=torch.tensor([[0, 0]], device=model.device), use_cache=False).logits
    if logits.isnan().any() or not logits.isfinite().any(-1).all():  # -inf forbids a token
        raise _without_numbers(model, logits.dtype)


def _without_numbers(model: Any, dtype: torch.dtype) -> ValueError:
    return ValueError(
        f"the logits of {type(model).__name__} are NaN or infinite in {dtype}: its weights are damaged, or "
        "need another policy.dtype (float32 has the most room)"
    )


def _longest(model: Any, longest_prompt: int | None) -> int | None:
    """`FastEngine`'s `longest_prompt`; None on a CPU, where nothing is planned by it."""
    if longest_prompt is None or model.device.type != "cuda":
        return None
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or longest_prompt
    return max(min(longest_prompt, context), LEAST_LONGEST)


def _fast(model: Any, ways: Ways, **settings: Any) -> FastEngine | None:
    """The fast engine; None, with a warning, where the model cannot share a prefix.

    Raises:
        ValueError: its logits are no numbers, also without the kernels.
    """
    engine = None
    try:
        engine = FastEngine(model, ways=ways, **settings)
        verify_engine(model, engine)
    except (UnsupportedModelError, DataError) as error:
        broken = isinstance(error, DataError)
        own, problem, engine = engine is not None and engine.fingerprint["kernels"], str(error), None
    else:
        return engine
    # out here: within `except` the failed engine hangs on the frames of its check
    without = replace(ways, flash=False) if ways.flash else replace(ways, kernels=False) if own else None
    if without is None:
        if broken:
            raise _without_numbers(model, model.dtype)
        log.warning("%s runs on expanded caches, slower: %s", type(model).__name__, problem)
        return None
    engine = _fast(model, without, **settings)  # it may be them
    if engine is not None:
        part = "FlashAttention" if ways.flash else "the engine's own kernels"
        log.warning("%s runs without %s, slower: %s", type(model).__name__, part, problem)
    return engine


def verify_engine(model: Any, engine: FastEngine | None = None) -> float:
    """Decode a few perturbed tokens of two prompts, one of which crosses the model's smallest window.

    engine: the one that is to be used, left as if new; None builds a small one.
    Returns the largest difference found, relative to the size of the pre-logits.

    Raises:
        UnsupportedModelError: they differ by more than rounding, or the model fails on the engine's cache.
        DataError: the logits are NaN or infinite.
    """
    try:
        engine = engine or FastEngine(model, 4, max_new_tokens=_TOKENS, tile=4)
        return require_equal(_pairs(model, engine), engine.head.dtype)
    except (UnsupportedModelError, DataError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may fail in any way on a cache it was not written for
        raise UnsupportedModelError(f"it fails on a shared prefix with {type(error).__name__}: {error}") from error


@torch.no_grad()
def verify_head(model: Any, head: Head) -> float:
    """Compare the head of an engine, on the pre-logits of a short prompt, with the logits that the model gives.

    Returns the largest difference, relative to the size of the logits.

    Raises:
        ValueError: they differ by more than rounding. All engines have the same head, so none can run this model.
    """
    ids = torch.tensor([probe(5, head.weight.shape[0])], device=model.device)
    found = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].to(head.weight.device))
    own = model(input_ids=ids, use_cache=False).logits[0].float().to(found.device)
    seen = own.isfinite()  # a model may forbid tokens
    size = own[seen].square().mean().sqrt()
    worst = float((found[seen] - own[seen]).abs().max() / size)
    allowed = TOLERANCE.get(head.dtype, 2.5e-1)
    if not worst <= allowed:
        raise ValueError(
            f"the logits of {type(model).__name__} are not those of its LM head on its pre-logits: they differ by "
            f"{worst:.2g} of their size (allowed: {allowed:g}); no engine can steer this model"
        )
    return worst


def _pairs(model: Any, engine: FastEngine) -> list[tuple[Tensor, Tensor]]:
    """(decoded pre-logits, the model's own) of each response."""
    windows = [layout.window for layout in engine.slots.layouts if layout is not None and layout.window]
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", 1 << 20) - _TOKENS
    lengths = probe_lengths(windows, min(limit, engine.longest_prompt or limit))
    vocabulary = engine.head.weight.shape[0]
    pairs = []
    for length, rollouts in _perturbed(engine, lengths, vocabulary):
        for item in rollouts.items:
            ids = [*probe(length, vocabulary), *item.token_ids[:-1]]
            pairs.append((torch.as_tensor(item.prelogits), own_states(model.base_model, ids)[length - 1 :]))
    engine.forget()
    return pairs


def _perturbed(engine: FastEngine, lengths: list[int], vocabulary: int) -> list[tuple[int, Rollouts]]:
    tickets, tokens = {}, min(_TOKENS, engine.max_new_tokens)
    for length in lengths:
        proposal = Proposal(0, 2, OpenLoop(horizon=tokens, sigma=1.0), want=frozenset({"prelogits"}))
        request = RolloutRequest(tuple(probe(length, vocabulary)), length, proposal, tokens, StopRules())
        tickets[engine.submit(request)] = length
    found = []
    while engine.num_pending:
        for ticket, result in engine.step():
            if isinstance(result, Exception):
                raise result
            found.append((tickets[ticket], result))
    return found
