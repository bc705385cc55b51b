"""Random small checkpoints with the architecture, tokenizer class, special tokens and chat format of each policy."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = [
    "Why do cats knead? My cat does it every evening.",
    "User: Human: Assistant: the question is what the answer is, and how to say it.",
    "def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3",
]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set lead = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user, assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ lead if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHATML = (
    "{{ bos_token or '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PHI_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _generic(special: list[str], bos: str, eos: str, chat: str | None) -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer that opens every text with `bos`, as Llama-3's and LFM2's do."""
    tokenizer = _byte_level(special)
    where = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, where)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, additional_special_tokens=special
    )
    made.chat_template = chat
    return made


def _parts(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a small byte-level BPE."""
    import json

    model = json.loads(_byte_level(special).to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _metaspace(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in SentencePiece's manner: spaces as U+2581, unknown characters as bytes."""
    import json

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=len(pieces) + 120, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _llama3(chat: str | None, eos: str):
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _generic(special, special[0], eos, chat)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=512)
    return tokenizer, config, [tokenizer.convert_tokens_to_ids(token) for token in ("<|end_of_text|>", "<|eot_id|>")]


def _vicuna():
    vocab, merges = _metaspace(["<unk>", "<s>", "</s>"])
    tokenizer = transformers.LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, add_eos_token=False)
    return tokenizer, transformers.LlamaConfig(**SMALL, max_position_embeddings=512), [tokenizer.eos_token_id]


def _gemma3():
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    vocab, merges = _metaspace(special)
    tokenizer = transformers.GemmaTokenizer(vocab=vocab, merges=merges, additional_special_tokens=special[-2:])
    tokenizer.chat_template = GEMMA_CHAT
    text = {
        **SMALL,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 16,
        "max_position_embeddings": 512,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    vision = {**SMALL, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return tokenizer, config, [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]


def _lfm2():
    special = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _generic(special, special[1], special[4], CHATML)
    config = transformers.Lfm2Config(
        **SMALL, num_key_value_heads=2, max_position_embeddings=512, layer_types=["conv", "full_attention"]
    )
    return tokenizer, config, [tokenizer.eos_token_id]


def _phi4():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"]
    vocab, merges = _parts(special)
    tokenizer = transformers.GPT2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token=special[0], additional_special_tokens=special
    )
    tokenizer.chat_template = PHI_CHAT
    config = transformers.Phi3Config(**SMALL, num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0)
    return tokenizer, config, [tokenizer.eos_token_id]


def _qwen3():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab, merges = _parts(special)
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", additional_special_tokens=special
    )
    tokenizer.chat_template = CHATML
    config = transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, max_position_embeddings=512)
    return tokenizer, config, [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")]


def _smollm2():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _generic(special, "<|im_start|>", "<|im_end|>", CHATML.replace("{{ bos_token or '' }}", ""))
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=512)
    return tokenizer, config, [tokenizer.eos_token_id]


MAKERS = {
    "smollm2": _smollm2,
    "llama3_8b": lambda: _llama3(None, "<|end_of_text|>"),
    "llama3_8b_instruct": lambda: _llama3(LLAMA3_CHAT, "<|eot_id|>"),
    "vicuna_7b": _vicuna,
    "gemma3_4b": _gemma3,
    "lfm2_5_1_2b": _lfm2,
    "phi_4": _phi4,
    "qwen3_8b": _qwen3,
    "hf": lambda: _llama3(LLAMA3_CHAT, "<|eot_id|>"),
}


def make_checkpoint(policy: str, folder: Path) -> Path:
    """Write the stand-in of conf/policy/<policy>.yaml to <folder>/<policy>."""
    tokenizer, config, ends = MAKERS[policy]()
    text = config.get_text_config()
    text.vocab_size = len(tokenizer)
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, ends[0]
    torch.manual_seed(0)  # weights of a test model; no draw of the package depends on it
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5 if "lm_head" in name or "embed" in name else 0.2)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ends, bos_token_id=tokenizer.bos_token_id, do_sample=True
    )
    place = folder / policy
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place
