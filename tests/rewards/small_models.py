"""Small reward models written to disk in the layout in which the real ones are published."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from aisp_ray.types import Message, Prompt

TEXTS = [
    "Human: How do I boil an egg?\n\nAssistant: Put the egg in water and heat the water for six minutes.",
    "User: Is rain wet? Assistant: Yes, the rain is wet, and so is the street.",
    "[INST] Name a colour [/INST] The colour of the sky is blue, the colour of grass is green.",
]
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}<|mid|>\n\n"
    "{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|mid|>\n\n{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}


def byte_tokenizer(specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def decoder_tokenizer(chat_template: str | None, bos: str | None = "<s>", eos: str = "</s>", **kwargs):
    """A tokenizer that puts `bos` before every text by itself, as those of Llama do, and pads with its end token."""
    specials = [token for token in (bos, eos, "<|start|>", "<|mid|>", "<|eot|>") if token]
    raw = byte_tokenizer(list(dict.fromkeys(specials)))
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=chat_template, **kwargs
    )


def encoder_tokenizer():
    raw = byte_tokenizer(["[PAD]", "[CLS]", "[SEP]"])
    pieces = [(token, raw.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=pieces
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def spread(model):
    """Weights large enough that different texts get clearly different scores."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25
        elif "bias" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model


def write_classifier(folder: Path, config, tokenizer, **saving) -> Path:
    config.pad_token_id = tokenizer.pad_token_id
    config.vocab_size = len(tokenizer)
    model = spread(AutoModelForSequenceClassification.from_config(config).float())
    model.save_pretrained(folder, **saving)
    tokenizer.save_pretrained(folder)
    return folder


def write_llama3_classifier(folder: Path, num_labels: int = 1, **kwargs) -> Path:
    """Skywork-Reward-V2-Llama, Tulu-RM, FsfairX: chat template with start token, pad equal to the end of a turn."""
    tokenizer = decoder_tokenizer(LLAMA3, bos="<|begin|>", eos="<|eot|>", **kwargs)
    return write_classifier(folder, LlamaConfig(**GROUPED, num_labels=num_labels), tokenizer)


def write_qwen3_classifier(folder: Path) -> Path:
    """Skywork-Reward-V2-Qwen3: no start token at all."""
    return write_classifier(
        folder, Qwen3Config(**GROUPED, num_labels=1), decoder_tokenizer(CHATML, bos=None, eos="<|eot|>")
    )


def write_deberta(folder: Path, num_labels: int = 1) -> Path:
    """OpenAssistant's DeBERTa-v3 reward model: relative positions, a pooler, pairs of segments."""
    config = DebertaV2Config(
        **SMALL,
        num_labels=num_labels,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
        pooler_hidden_size=32,
    )
    return write_classifier(folder, config, encoder_tokenizer())


def write_regression(folder: Path, family: str) -> Path:
    """UltraRM-13b (Llama body, torch shards with an index) and Eurus-RM-7b (Mistral body, safetensors, auto_map)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = decoder_tokenizer(None)
    sizes = {**GROUPED, "vocab_size": len(tokenizer)}
    config = LlamaConfig(**sizes) if family == "ultrarm" else MistralConfig(**sizes, sliding_window=None)
    body = spread((LlamaModel if family == "ultrarm" else MistralModel)(config).float())
    weights = {f"model.{name}": tensor for name, tensor in body.state_dict().items()}
    weights["regression_head.weight"] = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    values = config.to_dict() | {"pad_token_id": 0, "dtype": "float32"}
    if family == "ultrarm":
        values["architectures"] = ["LlamaRewardModel"]
        names = sorted(weights)
        shards = {
            "pytorch_model-00001-of-00002.bin": names[: len(names) // 2],
            "pytorch_model-00002-of-00002.bin": names[len(names) // 2 :],
        }
        for shard, some in shards.items():
            torch.save({name: weights[name] for name in some}, folder / shard)
        index = {name: shard for shard, some in shards.items() for name in some}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    else:
        from safetensors.torch import save_file

        values["architectures"] = ["EurusRewardModel"]
        values["auto_map"] = {"AutoModel": "modeling_eurus_rm.EurusRewardModel"}
        (folder / "modeling_eurus_rm.py").write_text('raise RuntimeError("code of the checkpoint ran")\n')
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values, default=str))
    tokenizer.save_pretrained(folder)
    return folder


def ask(text: str = "How do I boil an egg?", *turns: tuple[str, str], name: str = "p/0") -> Prompt:
    messages = tuple(Message(role, content) for role, content in turns)
    return Prompt(name, 0, "test", text, messages)


RESPONSES = (
    "Put the egg in water.",
    "Heat the water for six minutes, then take the egg out and cool it.",
    "No.",
    "The colour of the sky is blue",
    "Heat the water for nine minutes.",
)
