"""A byte-level tokenizer with a chat template of the test's own."""

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def tokenizer_with(chat: str | None) -> transformers.PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.chat_template = chat
    return made
