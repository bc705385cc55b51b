"""Small random models whose heads are wide enough for vLLM's attention on a CPU, saved to disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file

from tests.engine.tiny_models import VOCABULARY, WINDOW, tiny

CONTEXT, DIM = 96, 64
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


def saved(name: str, folder: Path) -> tuple[Any, str]:
    """The model and the folder that it was written to."""
    model = tiny(name, builders=BUILDERS)
    model.save_pretrained(folder / name)
    return model, str(folder / name)


def saved_in_8_bits(name: str, folder: Path) -> tuple[Any, str]:
    """The model with rounded weights and activations, and a folder that holds it as compressed-tensors of 8 bits."""
    model, path = saved(name, folder)
    tensors = model.state_dict()
    # with 127 steps vLLM's products are wrong on a CPU without VNNI, as if they overflowed
    for key in [key for key in tensors if key.startswith("model.layers") and "_proj" in key]:
        scale = tensors[key].abs().amax(1, keepdim=True) / 63
        rounded = (tensors[key] / scale).round()
        tensors |= {key: rounded.to(torch.int8), f"{key}_scale": scale}
        model.get_parameter(key).data = rounded * scale
        model.get_submodule(key.removesuffix(".weight")).register_forward_pre_hook(_round_tokens)
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, f"{path}/model.safetensors", {"format": "pt"})
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**integers, "strategy": "channel", "dynamic": False},
        "input_activations": {**integers, "strategy": "token", "dynamic": True},
    }
    config = json.loads(Path(path, "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    Path(path, "config.json").write_text(json.dumps(config))
    return model, path


def _round_tokens(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Every token's activations [..., d] to 255 steps of its own."""
    scale = inputs[0].abs().amax(-1, keepdim=True) / 127
    return ((inputs[0] / scale).round() * scale,)
