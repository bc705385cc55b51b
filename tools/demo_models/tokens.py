"""The demo tokenizer: byte-level BPE with a chat template, and how dialogues become token ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, USER, ASSISTANT, END = "<pad>", "<bos>", "<user>", "<assistant>", "<end>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}<end>"
    "{% else %}<user>{{ message['content'] | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer(texts: Iterable[str], size: int = 768) -> PreTrainedTokenizerFast:
    """Train the tokenizer. Every byte has a token, so any text can be encoded; it adds no special tokens itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, BOS, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a folder."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def encode_prompts(tokenizer: PreTrainedTokenizerFast, dialogues: list[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids of chat prompts, up to and with the assistant mark."""
    texts = [tokenizer.apply_chat_template(d, tokenize=False, add_generation_prompt=True) for d in dialogues]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def encode_replies(tokenizer: PreTrainedTokenizerFast, replies: list[str], ended: list[bool]) -> list[list[int]]:
    """Token ids of replies, with the end token behind the finished ones."""
    texts = [reply + END * end for reply, end in zip(replies, ended, strict=True)]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
