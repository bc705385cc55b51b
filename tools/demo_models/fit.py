"""What the training of policy and rewards shares: the size of the body, the optimiser, padding."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

IGNORE = -100


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Three layers of width 128; about 0.7 million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=336,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def optimise(model: torch.nn.Module, loss_of: Callable[[int], torch.Tensor], steps: int, peak: float) -> None:
    """AdamW with a short warm-up and a cosine to a tenth of the peak; `loss_of(step)` gives the loss of a batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    start, running = time.time(), 0.0
    for step in range(steps):
        progress = min(1.0, (step + 1) / 40) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for param_group in optimizer.param_groups:
            param_group["lr"] = peak * progress
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += (loss.item() - running) / min(step + 1, 50)
        if step % 50 == 49:
            print(f"step {step + 1}/{steps} loss {running:.3f} {time.time() - start:.0f}s", flush=True)


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of different length as one right-padded tensor."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
