"""A small Llama as a GGUF file, quantised and laid out as llama.cpp's converter does."""

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from tiny_checkpoints import CHATML, _parts

HEADS, KV_HEADS, WIDTH = 4, 2, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def small_llama(vocab_size: int) -> transformers.LlamaForCausalLM:
    """Random weights, large enough that the argmax does not hang on rounding."""
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        vocab_size=vocab_size,
        tie_word_embeddings=True,
        rope_theta=10000.0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5 if "embed" in name else 0.2)
    return model


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order of rotary pairs."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0) -> Path:
    """Write the model and its tokenizer; matrices are quantised as `kind`, norms stay float32."""
    vocab, merges = _parts(SPECIAL)
    model = small_llama(len(vocab))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocab, key=vocab.get))
    writer.add_token_types([3 if token in SPECIAL else 1 for token in sorted(vocab, key=vocab.get)])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(vocab["<|im_start|>"])
    writer.add_eos_token_id(vocab["<|im_end|>"])
    writer.add_pad_token_id(vocab["<|im_end|>"])
    writer.add_chat_template(CHATML.replace("{{ bos_token or '' }}", ""))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        values = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            values = _interleaved(values, HEADS if "q_proj" in name else KV_HEADS)
        written = names.get_name(name, try_suffixes=(".weight",))
        if values.ndim > 1:
            writer.add_tensor(written, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(written, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
