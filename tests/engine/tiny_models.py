"""Small random models of real architectures, and the naive way to decode them under a perturbation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers as hf

from aisp_ray.engine.base import Engine, RolloutRequest, StopRules
from aisp_ray.types import Control, Proposal, Rollouts, Sampling

DEVICE = os.environ.get("AISP_TEST_DEVICE", "cpu")  # where `tiny` puts its models
VOCABULARY = 101
WINDOW = 12
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}


def _llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES))


def _qwen3() -> Any:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**_SIZES, head_dim=16))


def _mistral() -> Any:
    return hf.MistralForCausalLM(hf.MistralConfig(**_SIZES, sliding_window=WINDOW))


def _gemma2() -> Any:
    config = hf.Gemma2Config(
        **_SIZES,
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        attn_implementation="eager",
    )
    return hf.Gemma2ForCausalLM(config)


def _gemma3() -> Any:
    types = ["sliding_attention", "full_attention"]
    config = hf.Gemma3TextConfig(
        **_SIZES, head_dim=16, layer_types=types, sliding_window=WINDOW, query_pre_attn_scalar=16
    )
    return hf.Gemma3ForCausalLM(config)


def _phi3() -> Any:
    return hf.Phi3ForCausalLM(hf.Phi3Config(**_SIZES))


def _phi() -> Any:
    return hf.PhiForCausalLM(hf.PhiConfig(**_SIZES))


def _gpt2() -> Any:
    config = hf.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=256, bos_token_id=1, eos_token_id=2
    )
    return hf.GPT2LMHeadModel(config)


def _lfm2() -> Any:
    return hf.Lfm2ForCausalLM(hf.Lfm2Config(**_SIZES, layer_types=["conv", "full_attention"]))


def _qwen3_moe() -> Any:
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**_SIZES, head_dim=16, num_experts=4, **_MOE))


def _gpt_oss() -> Any:
    config = hf.GptOssConfig(
        **_SIZES,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="eager",
    )
    return hf.GptOssForCausalLM(config)


def _granite() -> Any:
    return hf.GraniteForCausalLM(hf.GraniteConfig(**_SIZES, logits_scaling=4.0, attention_multiplier=0.2))


def _falcon_h1() -> Any:
    config = hf.FalconH1Config(**_SIZES, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8)
    return hf.FalconH1ForCausalLM(config)


def _phi3_longrope() -> Any:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **factors}
    config = hf.Phi3Config(
        **_SIZES, max_position_embeddings=256, original_max_position_embeddings=32, rope_parameters=rope
    )
    return hf.Phi3ForCausalLM(config)


BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "phi": _phi,
    "gpt2": _gpt2,
    "lfm2": _lfm2,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "granite": _granite,
    "falcon_h1": _falcon_h1,
    "phi3_longrope": _phi3_longrope,
}


def tiny(name: str, dtype: torch.dtype = torch.float32, builders: Mapping[str, Callable[[], Any]] = BUILDERS) -> Any:
    """A random model with weights large enough that a wrong key changes tokens."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = builders[name]().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("bias") or "sinks" in key:
                weight.normal_(0, 0.5)
            elif weight.dim() > 1:  # Gemma's tied embeddings would repeat one token for ever
                weight.normal_(0, 0.04 if "embed" in key and name.startswith("gemma") else 0.2)
    return model.to(dtype).to(DEVICE)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def request(
    length: int = 7,
    n: int = 4,
    tokens: int = 10,
    control: Control | None = None,
    **more: Any,
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


@torch.no_grad()
def generate(model: Any, ids: Sequence[int], controls: torch.Tensor, ends: Sequence[int]) -> list[tuple[int, ...]]:
    """transformers' own greedy `generate` with controls [n, t, d] added at the LM head; up to the end token."""
    n, tokens, _ = controls.shape
    controls, step = controls.to(model.device), iter(range(tokens))
    hook = lambda _, args: ((args[0].float() + controls[:, next(step)][:, None]).to(args[0].dtype),)  # noqa: E731
    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    out = model.generate(
        torch.tensor([ids], device=model.device).expand(n, -1),
        attention_mask=torch.ones(n, len(ids), dtype=torch.int64, device=model.device),
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
    )[:, len(ids) :]
    handle.remove()
    found = []
    for row in out.tolist():
        last = next((i for i, token in enumerate(row) if token in ends), tokens - 1)
        found.append(tuple(row[: last + 1]))
    return found


def bits(rollouts: Rollouts) -> list[tuple]:
    """Everything of the rows that must not depend on scheduling, bit for bit, in particle order."""
    return [
        (
            item.particle,
            item.token_ids,
            item.finish_reason,
            item.control_inner,
            item.control_square,
            item.logprob,
            None if item.prelogits is None else item.prelogits.tobytes(),
        )
        for item in rollouts.items
    ]
