"""Train the demo policy: a small causal language model of the world's replies."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tools.demo_models import data, tokens
from tools.demo_models.fit import IGNORE, make_config, optimise, pad

Documents = list[tuple[list[int], list[int]]]


def encode_documents(tokenizer: PreTrainedTokenizerFast, count: int, seed: str) -> Documents:
    """(prompt ids, reply ids) of drawn documents."""
    questions, replies = zip(*data.documents(count, seed), strict=True)
    prompts = tokens.encode_prompts(tokenizer, [q.messages for q in questions])
    return list(zip(prompts, tokens.encode_replies(tokenizer, list(replies), [True] * count), strict=True))


def lm_loss(model: LlamaForCausalLM, batch: Documents) -> torch.Tensor:
    """Mean negative log-likelihood per reply token; prompts are read, not learned."""
    ids = pad([prompt + reply for prompt, reply in batch], model.config.pad_token_id)  # [b, t]
    labels = pad([[IGNORE] * len(prompt) + reply for prompt, reply in batch], IGNORE)  # [b, t]
    logits = model(input_ids=ids, use_cache=False).logits  # [b, t, V]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)


def train_lm(tokenizer: PreTrainedTokenizerFast, seed: str, steps: int, batch: int = 40) -> LlamaForCausalLM:
    """A causal language model of the world's replies."""
    torch.manual_seed(random.Random(f"init/{seed}").getrandbits(31))
    model = LlamaForCausalLM(make_config(tokenizer))
    rows = encode_documents(tokenizer, 20_000, seed)
    rng = random.Random(f"batches/{seed}")
    optimise(model, lambda _: lm_loss(model, rng.choices(rows, k=batch)), steps, peak=4e-3)
    return model.eval()


@torch.no_grad()
def lm_figures(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Validation loss and mean entropy of the next-token distribution, in nats per reply token."""
    rows = encode_documents(tokenizer, 400, "validation")
    ids = pad([prompt + reply for prompt, reply in rows], model.config.pad_token_id)
    labels = pad([[IGNORE] * len(prompt) + reply for prompt, reply in rows], IGNORE)[:, 1:]
    log_p = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)  # [b, t, V]
    mask = labels != IGNORE
    return {
        "validation_loss": -log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0][mask].mean().item(),
        "entropy": -(log_p.exp() * log_p).sum(-1)[mask].mean().item(),
        "reply_tokens": mask.sum().item() / len(rows),
    }
