"""Small random models whose heads are wide enough for vLLM's attention on a CPU, saved to disk; requests for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from aisp_ray.engine.base import Engine, RolloutRequest, StopRules
from aisp_ray.types import Control, Proposal, Rollouts, Sampling

VOCABULARY, WINDOW, CONTEXT, DIM = 101, 12, 96, 64
_SIZES = {
    "hidden_size": DIM,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}

BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_SIZES)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_SIZES, **_TYPES, query_pre_attn_scalar=32)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_SIZES, sliding_window=WINDOW)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(
            **_SIZES,
            **_TYPES,
            query_pre_attn_scalar=32,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
            attn_implementation="eager",
        )
    ),
    "granite": lambda: hf.GraniteForCausalLM(
        hf.GraniteConfig(
            **{k: v for k, v in _SIZES.items() if k != "head_dim"}
            | {"num_attention_heads": 2, "num_key_value_heads": 1},
            logits_scaling=4.0,
            attention_multiplier=0.2,
        )
    ),
}


def small(name: str) -> Any:
    """A random model with weights large enough that a wrong key changes tokens."""
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1:  # Gemma's tied embeddings would repeat one token for ever
                weight.normal_(0, 0.04 if "embed" in key and name.startswith("gemma") else 0.2)
    return model


def saved(name: str, folder: Path) -> tuple[Any, str]:
    """The model and the folder that it was written to."""
    model = small(name)
    model.save_pretrained(folder / name)
    return model, str(folder / name)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def request(
    length: int = 7, n: int = 4, tokens: int = 10, control: Control | None = None, **more: Any
) -> RolloutRequest:
    """A request by keywords: `seed` names the prompt; the rest are fields of the proposal or of the request."""
    seed = more.pop("seed", 0)
    own = {"stop": more.pop("stop", StopRules()), "particles": more.pop("particles", None)}
    asked = Proposal(more.pop("iteration", 0), n, control or Control(), more.pop("sampling", Sampling()), **more)
    return RolloutRequest(prompt(length, seed), 17 + seed, asked, tokens, **own)


def drive(engine: Engine, requests: Sequence[RolloutRequest]) -> list[Rollouts]:
    """All requests at once, their rollouts in order."""
    tickets = [engine.submit(one) for one in requests]
    found = {}
    while engine.num_pending:
        for ticket, result in engine.step():
            if isinstance(result, Exception):
                raise result
            found[ticket] = result
    return [found[ticket] for ticket in tickets]
