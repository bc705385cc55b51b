"""Tokens per second of the engine on one GPU, in the real shapes of three models with random weights. No Ray.

    python benchmarks/gpu.py [--models lfm2_1b gemma3_4b llama3_8b] [--rows 16 256 1024] [--json FILE]
    python benchmarks/gpu.py --tiny --device cpu        # a dry run of the script itself

Prompt 131 tokens, 512 new tokens, n = 16. AISP decodes greedily under noise and a mean; best-of-n samples at
temperature 1. `rows` rows are decoded side by side, of rows / 16 prompts. The timed part has the prefills in it, and
not the recording of the graphs.

Roofline of a step with R rows: R / max(bytes / bandwidth, flops / peak) tokens/s, where
    bytes = weights + P * L * kv + R * (T / 2) * kv + 8 * R * V      (kv: bytes of one token's keys and values;
            float32 logits written and read once), flops = 2 * weights_in_products * R.
Beside it stand the published figures of one H200 with one prompt at a time (AISP and best-of-n, on transformers).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.lm.memory import give_back
from aisp_ray.types import Proposal, Sampling

NUM_SAMPLES = 16
# bytes/s and dense bf16 flop/s by a part of the device's name
DEVICES = {"H200": (4.8e12, 989e12), "H100": (3.35e12, 989e12), "A100": (2.0e12, 312e12), "L40S": (0.86e12, 362e12)}
# tokens/s on one H200 with transformers, one prompt at a time: (best-of-n, AISP)
PUBLISHED = {"lfm2_1b": (5385, 3053), "gemma3_4b": (1658, 670)}


def lfm2_1b() -> Any:
    attention = {2, 5, 8, 10, 12, 14}
    return transformers.Lfm2Config(
        vocab_size=65536,
        hidden_size=2048,
        intermediate_size=8192,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        layer_types=["full_attention" if i in attention else "conv" for i in range(16)],
    )


def gemma3_4b() -> Any:
    return transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        sliding_window=1024,
    )


def llama3_8b() -> Any:
    return transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )


def tiny() -> Any:
    return transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )


CONFIGS: dict[str, Callable[[], Any]] = {"lfm2_1b": lfm2_1b, "gemma3_4b": gemma3_4b, "llama3_8b": llama3_8b}


@dataclass(frozen=True)
class Shape:
    """What is decoded."""

    rows: int
    prompt: int
    tokens: int

    @property
    def prompts(self) -> int:
        return max(self.rows // NUM_SAMPLES, 1)


def build(config: Any, device: str) -> Any:
    """A random model, made on the device in bfloat16."""
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def requests(shape: Shape, method: str, vocabulary: int, round_index: int) -> list[RolloutRequest]:
    """One round of `shape.rows` rows. AISP's has a mean, as every iteration but the first does."""
    log = WeightLog((WeightEntry(0, (1 / NUM_SAMPLES,) * NUM_SAMPLES, (shape.tokens,) * NUM_SAMPLES, 0.7),))
    control, sampling = OpenLoop(shape.tokens, log, 0.7), Sampling()
    if method == "best_of_n":
        control, sampling = OpenLoop(), Sampling(1.0)
    found = []
    for index in range(shape.prompts):
        ids = tuple(np.random.default_rng((round_index, index)).integers(0, vocabulary, shape.prompt).tolist())
        proposal = Proposal(1, min(NUM_SAMPLES, shape.rows), control, sampling)
        found.append(RolloutRequest(ids, index, proposal, shape.tokens, StopRules()))
    return found


def drain(engine: FastEngine, work: list[RolloutRequest]) -> int:
    """Decode it all; returns the number of generated tokens."""
    for request in work:
        engine.submit(request)
    tokens = 0
    while engine.num_pending:
        for _, result in engine.step():
            if isinstance(result, Exception):
                raise result
            tokens += result.num_generated_tokens
    return tokens


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(model: Any, shape: Shape, method: str, device: str) -> dict[str, Any]:
    """Tokens/s of a warm engine and its peak memory, GiB."""
    vocabulary = model.config.vocab_size
    tile, stack = min(shape.rows, 256), shape.prompt + 16
    engine = FastEngine(model, shape.rows, max_new_tokens=shape.tokens, tile=tile, stack=stack)
    drain(engine, requests(shape, method, vocabulary, 0))  # records the graphs
    synchronise(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    tokens = drain(engine, requests(shape, method, vocabulary, 1))
    synchronise(device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    captured = all(capture.enabled for capture in engine.slots.captures.values())
    return {"tokens_per_second": tokens / seconds, "seconds": seconds, "peak_gib": peak, "captured": captured}


def roofline(model: Any, shape: Shape, engine_layouts: list[Any], speed: tuple[float, float]) -> float:
    """Tokens/s that memory and arithmetic allow, by the formula above."""
    bandwidth, peak = speed
    weights = sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values())
    embedding = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.nbytes
    per_token = sum(layout.token_bytes for layout in engine_layouts if layout is not None)
    held = shape.prompts * shape.prompt * per_token + shape.rows * shape.tokens / 2 * per_token
    moved = weights - embedding + held + 8 * shape.rows * model.config.vocab_size
    flops = 2 * (weights - embedding) / 2 * shape.rows  # two bytes a weight
    return shape.rows / max(moved / bandwidth, flops / peak)


def lines_of(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    give_back(torch.device(args.device))  # what the model before held
    model = build((CONFIGS | {"tiny": tiny})[name](), args.device)
    layouts = FastEngine(model, 1, max_new_tokens=1, stack=16).slots.layouts
    found = []
    for rows in args.rows:
        shape = Shape(rows, args.prompt, args.tokens)
        line: dict[str, Any] = {"model": name, "rows": rows, "prompt": args.prompt, "new_tokens": args.tokens}
        for method in ("aisp", "best_of_n"):
            try:
                line |= {f"{method}_{key}": value for key, value in measure(model, shape, method, args.device).items()}
            except torch.OutOfMemoryError as error:
                line[f"{method}_error"] = str(error).splitlines()[0]
            give_back(torch.device(args.device))  # what that engine held
        if "aisp_seconds" in line and "best_of_n_seconds" in line:
            line["aisp_time_over_best_of_n"] = line["aisp_seconds"] / line["best_of_n_seconds"]
            if args.speed is not None:
                line["roofline_fraction"] = line["aisp_tokens_per_second"] / roofline(model, shape, layouts, args.speed)
            published = PUBLISHED.get(name)
            if published is not None:
                line["times_published_aisp"] = line["aisp_tokens_per_second"] / published[1]
                line["times_published_best_of_n"] = line["best_of_n_tokens_per_second"] / published[0]
        found.append(line)
        print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in line.items()}), flush=True)
    return found


def speed_of(device: str, bandwidth: float | None, tflops: float | None) -> tuple[float, float] | None:
    """(bytes/s, flop/s) of the device; None if it is not known and not given."""
    if bandwidth is not None and tflops is not None:
        return bandwidth * 1e12, tflops * 1e12
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((speed for part, speed in DEVICES.items() if part in name), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--rows", nargs="*", type=int, default=[16, 256, 1024])
    parser.add_argument("--prompt", type=int, default=131)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="two small layers instead of the real shapes")
    parser.add_argument("--bandwidth", type=float, help="TB/s, for a GPU that is not known here")
    parser.add_argument("--tflops", type=float, help="dense bf16, for a GPU that is not known here")
    parser.add_argument("--json", type=Path, help="write one JSON object a line to this file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --tiny --device cpu tries the script itself")
    transformers.logging.set_verbosity_error()
    args.speed = speed_of(args.device, args.bandwidth, args.tflops)
    print({"torch": torch.__version__, "transformers": transformers.__version__, "speed": args.speed})
    lines = [line for name in (["tiny"] if args.tiny else args.models) for line in lines_of(name, args)]
    if args.json is not None:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
