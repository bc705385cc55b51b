"""Hidden states of a frozen body at every preference pair, kept on the disk: each pair is read once, packed.

python -m tools.real_models.features CHECKPOINT PAIRS.jsonl OUT [--layers 18] [--keep 14,17]

OUT/last.npy [pairs, 2, layers + 1, width]: the residual stream at the last token of each dialogue (0: the embedding).
OUT/tokens-L.npy [tokens, width]: at every token, for the layers in --keep. OUT/spans.json: [prompt, chosen, rejected]
token counts of each pair, in the order of the rows of tokens-L.npy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.real_models.pairs import Pair, read_pairs

PROMPT_TOKENS, REPLY_TOKENS = 128, 128


def pack(pair: Pair) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids [1, t], positions [1, t], additive mask [1, 1, t, t]) of a pair whose replies do not see each other."""
    p, c, r = len(pair.prompt), len(pair.chosen), len(pair.rejected)
    ids = torch.tensor([pair.prompt + pair.chosen + pair.rejected])
    positions = torch.cat([torch.arange(p + c), torch.arange(p, p + r)])[None]
    sees = torch.ones(p + c + r, p + c + r, dtype=torch.bool).tril()
    sees[p + c :, p : p + c] = False
    return ids, positions, torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]


@torch.inference_mode()
def extract(body: Any, pairs: list[Pair], out: Path, keep: list[int]) -> None:
    """Write the hidden states of every pair under `out`."""
    layers, width = len(body.layers), body.config.hidden_size
    total = sum(pair.num_tokens for pair in pairs)
    out.mkdir(parents=True, exist_ok=True)
    spans = [[len(pair.prompt), len(pair.chosen), len(pair.rejected)] for pair in pairs]
    (out / "spans.json").write_text(json.dumps(spans))
    last = np.lib.format.open_memmap(out / "last.npy", "w+", np.float16, (len(pairs), 2, layers + 1, width))
    whole = {
        layer: np.lib.format.open_memmap(out / f"tokens-{layer}.npy", "w+", np.float16, (total, width))
        for layer in keep
    }
    started, at = time.monotonic(), 0
    streams: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])) for layer in body.layers]
    hooks.append(body.norm.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])))
    for number, pair in enumerate(pairs):
        ids, positions, mask = pack(pair)
        streams.clear()
        body(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        ends = [len(pair.prompt) + len(pair.chosen) - 1, pair.num_tokens - 1]
        for layer, stream in enumerate(streams):
            last[number, :, layer] = stream[0, ends].numpy()
            if layer in whole:
                whole[layer][at : at + pair.num_tokens] = stream[0].numpy()
        at += pair.num_tokens
        if number % 25 == 0:
            print(f"{number}/{len(pairs)} pairs, {at} tokens, {time.monotonic() - started:.0f} s", flush=True)
    for hook in hooks:
        hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=18, help="layers of the body that are run")
    parser.add_argument("--keep", default="", help="layers whose hidden states are kept at every token")
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    body = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32).model.eval()
    body.layers = body.layers[: args.layers]
    pairs = list(read_pairs(args.pairs, tokenizer, PROMPT_TOKENS, REPLY_TOKENS))
    print(f"{len(pairs)} pairs, {sum(pair.num_tokens for pair in pairs)} tokens")
    extract(body, pairs, args.out, [int(layer) for layer in args.keep.split(",") if layer])


if __name__ == "__main__":
    main()
