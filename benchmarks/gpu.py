"""Tokens per second of the engine on one GPU, in the real shapes of a model with random weights. No Ray.

    python benchmarks/gpu.py --model llama3_8b [--rows 16 64 128 256] [--prompts 131 1024] [--tokens 256] [--json FILE]
    python benchmarks/gpu.py --model tiny --device cpu        # a dry run of the script itself

A call ends within ten minutes: no line is begun after `--seconds`. Each line is printed, and added to FILE, as it is
measured. n = 16 responses per prompt, so `rows` rows are decoded side by side, of rows / 16 prompts, in as many slots
as the line says (`slots`); the engine takes prompts of any length, as in a job. What is measured (`--what`):

    aisp        greedy decoding under noise and a mean, all rows of full length; prefills and means in the time
    best_of_n   the product's own: temperature 1 and top-p 0.95
    search      three iterations of AISP: prompts are found again and means are continued
    ragged      AISP with rows that end at random, 64 tokens on average, and others that wait for their slots
    eager       aisp without recorded steps
    generate    transformers' own generate with best-of-n's settings, one prompt at a time
    reward      response tokens per second that a reward model of this shape reads, 16 responses behind the prompt

Two rooflines of a step with R rows. The serial one adds what follows each other on one stream, products and attention:
    R / (max(weights / bandwidth, 2 * R * weights_in_products / peak) + (attention + 8 * R * V) / bandwidth)
    with attention = P * L * kv + R * (T / 2) * kv  (kv: bytes of one token's keys and values; float32 logits written
    and read once). The parallel one, R / max(all bytes / bandwidth, flops / peak), lets them overlap; nothing does.
Beside it stand the published figures of one H200 with one prompt at a time (AISP and best-of-n, on transformers).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
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
from aisp_ray.engine.slots import Ways
from aisp_ray.lm.memory import give_back
from aisp_ray.rewards._packed import Packed
from aisp_ray.types import Proposal, Sampling

NUM_SAMPLES = 16
BEST_OF_N = Sampling(1.0, top_p=0.95)
RAGGED = 64  # tokens of a response, on average
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


def llama2_13b() -> Any:
    """UltraRM's shape."""
    return transformers.LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    )


def tiny() -> Any:
    return transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )


CONFIGS: dict[str, Callable[[], Any]] = {one.__name__: one for one in (lfm2_1b, gemma3_4b, llama3_8b, llama2_13b, tiny)}


@dataclass(frozen=True)
class Shape:
    """What is decoded."""

    rows: int
    prompt: int
    tokens: int

    @property
    def prompts(self) -> int:
        return max(self.rows // NUM_SAMPLES, 1)

    @property
    def samples(self) -> int:
        return min(NUM_SAMPLES, self.rows)


@dataclass
class Bench:
    """A model and how it is run; `vocabulary` tokens."""

    name: str
    model: Any
    device: torch.device
    ways: Ways
    seed: int = 0  # of the prompts: no two rounds share one

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def engine(self, shape: Shape) -> FastEngine:
        return FastEngine(self.model, shape.rows, max_new_tokens=shape.tokens, ways=self.ways)

    def prompt(self, shape: Shape, index: int) -> tuple[int, ...]:
        draws = np.random.default_rng((self.seed, index))
        return tuple(draws.integers(0, self.vocabulary, shape.prompt).tolist())


def build(name: str, device: str) -> Any:
    """A random model, made on the device in bfloat16."""
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.bfloat16).eval()


def aisp(bench: Bench, shape: Shape, iteration: int = 1, stop: StopRules | None = None) -> list[RolloutRequest]:
    """An iteration of rows / 16 prompts; one that is not the first has a mean."""
    n, full = shape.samples, (shape.tokens,) * shape.samples
    log = WeightLog(tuple(WeightEntry(k, (1 / n,) * n, full, 0.7) for k in range(iteration)))
    proposal = Proposal(iteration, n, OpenLoop(shape.tokens, log if iteration else None, 0.7))
    return _requests(bench, shape, proposal, shape.prompts, stop)


def best_of_n(bench: Bench, shape: Shape) -> list[RolloutRequest]:
    return _requests(bench, shape, Proposal(0, shape.samples, OpenLoop(), BEST_OF_N), shape.prompts, None)


def _requests(
    bench: Bench, shape: Shape, proposal: Proposal, count: int, stop: StopRules | None
) -> list[RolloutRequest]:
    prompts = (bench.prompt(shape, index) for index in range(count))
    return [RolloutRequest(ids, i, proposal, shape.tokens, stop or StopRules()) for i, ids in enumerate(prompts)]


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


def timed(bench: Bench, call: Callable[[], int]) -> dict[str, float]:
    """Tokens per second of a call that returns how many it made."""
    bench.wait()
    started = time.perf_counter()
    tokens = call()
    bench.wait()
    seconds = time.perf_counter() - started
    return {"tokens_per_second": tokens / seconds, "seconds": seconds, "tokens": tokens}


def decoded(bench: Bench, shape: Shape, rounds: Callable[[], list[list[RolloutRequest]]], eager: bool = False) -> dict:
    """The second time that an engine does this work, on other prompts; the first records its graphs."""
    engine = bench.engine(shape)
    if eager:
        engine.slots.graphs.enabled = False
    work = lambda: sum(drain(engine, requests) for requests in rounds())  # noqa: E731
    first = timed(bench, work)["seconds"]
    bench.seed += 1
    engine.forget()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    line: dict[str, Any] = timed(bench, work)
    stats = engine.stats()
    return line | {
        "slots": engine.slots.count,
        "tile": engine.slots.tile_rows,
        "useful": stats["useful_row_steps"] / stats["row_steps"],
        "prefix_hits": stats["prefix_hits"],
        "captured": engine.slots.graphs.enabled,
        "graphs": sum(len(one._held) for one in engine.slots.captures.values()),
        "first_round_seconds": first,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if bench.device.type == "cuda" else None,
    }


def searched(bench: Bench, shape: Shape) -> dict[str, Any]:
    return decoded(bench, shape, lambda: [aisp(bench, shape, iteration) for iteration in range(3)])


def ragged(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Ends: tokens of a part of the vocabulary, which random weights choose at random."""
    count = max(bench.vocabulary // RAGGED, 1)
    ends = np.random.default_rng(0).choice(bench.vocabulary, count, replace=False)
    stop = StopRules(tuple(int(token) for token in ends))

    def rounds() -> list[list[RolloutRequest]]:
        four = Shape(4 * shape.rows, shape.prompt, shape.tokens)  # rows wait
        return [aisp(bench, four, stop=stop)]

    return decoded(bench, shape, rounds)


def generated(bench: Bench, shape: Shape) -> dict[str, Any]:
    def one() -> int:
        ids = torch.tensor([bench.prompt(shape, 0)], device=bench.device).expand(shape.samples, -1)
        options = {"do_sample": True, "temperature": 1.0, "top_p": BEST_OF_N.top_p, "top_k": 0, "use_cache": True}
        lengths = {"max_new_tokens": shape.tokens, "min_new_tokens": shape.tokens}
        out = bench.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options, **lengths)
        return int((out.shape[1] - ids.shape[1]) * out.shape[0])

    timed(bench, one)
    bench.seed += 1
    return timed(bench, one)


def scored(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Full batches of 16,384 response tokens behind a prompt that is read once."""
    packed = Packed(bench.model.base_model, 8 << 30)
    rows = max(16384 // shape.tokens, 1)

    def read() -> int:
        head = bench.prompt(shape, 0)
        bench.seed += 1
        answers = [head + bench.prompt(Shape(1, shape.tokens, 1), 1 + i) for i in range(rows)]
        packed([(head, [(ids, shape.prompt) for ids in answers], None)])
        return rows * shape.tokens

    timed(bench, read)
    return timed(bench, read) | {"responses": rows}


WHAT: dict[str, Callable[[Bench, Shape], dict[str, Any]]] = {
    "aisp": lambda bench, shape: decoded(bench, shape, lambda: [aisp(bench, shape)]),
    "best_of_n": lambda bench, shape: decoded(bench, shape, lambda: [best_of_n(bench, shape)]),
    "search": searched,
    "ragged": ragged,
    "eager": lambda bench, shape: decoded(bench, shape, lambda: [aisp(bench, shape)], eager=True),
    "generate": generated,
    "reward": scored,
}


def rooflines(bench: Bench, shape: Shape, speed: tuple[float, float]) -> dict[str, float]:
    """Tokens/s that memory and arithmetic allow, by the formulas above."""
    bandwidth, peak = speed
    model = bench.model
    weights = sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values())
    weights -= 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.nbytes
    layouts = FastEngine(model, 1, max_new_tokens=1, ways=bench.ways).slots.layouts
    per_token = sum(layout.token_bytes for layout in layouts if layout is not None)
    held = shape.prompts * shape.prompt * per_token + shape.rows * shape.tokens / 2 * per_token
    logits = 8 * shape.rows * bench.vocabulary
    compute = weights * shape.rows / peak  # two bytes a weight, two operations
    serial = max(weights / bandwidth, compute) + (held + logits) / bandwidth
    parallel = max((weights + held + logits) / bandwidth, compute)
    return {"serial": shape.rows / serial, "parallel": shape.rows / parallel}


def compared(bench: Bench, shape: Shape, what: str, line: dict[str, Any], speed: tuple[float, float] | None) -> dict:
    """A measured line beside the rooflines and the published figures."""
    rate = line["tokens_per_second"]
    if what in ("aisp", "best_of_n", "search") and speed is not None:
        line |= {f"{name}_roofline_fraction": rate / most for name, most in rooflines(bench, shape, speed).items()}
    if bench.name in PUBLISHED and what in ("aisp", "best_of_n"):
        line["times_published"] = rate / PUBLISHED[bench.name][what == "aisp"]
    return line


def lines(bench: Bench, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    speed = speed_of(bench.device, args.bandwidth, args.tflops)
    for prompt in args.prompts:
        for rows in args.rows:
            shape = Shape(rows, prompt, args.tokens)
            for what in args.what:
                if time.perf_counter() - args.started > args.seconds:
                    yield {"left_out": what, "rows": rows, "prompt": prompt, "reason": f"{args.seconds} s are over"}
                    continue
                if what == "generate" and rows != args.rows[0]:
                    continue  # one prompt, whatever the rows
                line = {"model": bench.name, "what": what, "rows": rows, "prompt": prompt, "new_tokens": args.tokens}
                try:
                    with torch.no_grad():
                        line |= compared(bench, shape, what, WHAT[what](bench, shape), speed)
                except torch.OutOfMemoryError as error:
                    line["error"] = str(error).splitlines()[0]
                yield line
                give_back(bench.device)  # what that engine held


def profile(bench: Bench, shape: Shape) -> None:
    """The twenty kernels that a window of steps spends most on."""
    engine = bench.engine(shape)
    drain(engine, aisp(bench, shape))
    bench.seed += 1
    for request in aisp(bench, shape):
        engine.submit(request)
    engine.step()
    engine.step()
    with torch.profiler.profile() as seen:
        engine.step()
        bench.wait()
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=20, max_name_column_width=90))


def speed_of(device: torch.device, bandwidth: float | None, tflops: float | None) -> tuple[float, float] | None:
    """(bytes/s, flop/s) of the device; None if it is not known and not given."""
    if bandwidth is not None and tflops is not None:
        return bandwidth * 1e12, tflops * 1e12
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return next((speed for part, speed in DEVICES.items() if part in name), None)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama3_8b", choices=list(CONFIGS))
    parser.add_argument("--what", nargs="*", default=list(WHAT)[:-1], choices=list(WHAT))
    parser.add_argument("--rows", nargs="*", type=int, default=[16, 64, 128, 256])
    parser.add_argument("--prompts", nargs="*", type=int, default=[131], help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--flash", action="store_true", help="PyTorch's FlashAttention in place of stacked prompts")
    parser.add_argument("--whole", action="store_true", help="step whole tiles, as with policy.narrow=false")
    parser.add_argument("--seconds", type=float, default=540, help="no line is begun later")
    parser.add_argument("--profile", action="store_true", help="print the kernels of one window at the first shape")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--bandwidth", type=float, help="TB/s, for a GPU that is not known here")
    parser.add_argument("--tflops", type=float, help="dense bf16, for a GPU that is not known here")
    parser.add_argument("--json", type=Path, help="add one JSON object a line to this file")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.started = time.perf_counter()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --model tiny --device cpu tries the script itself")
    transformers.logging.set_verbosity_error()
    ways = Ways(ahead=True, narrow=not args.whole, flash=args.flash)
    bench = Bench(args.model, build(args.model, args.device), torch.device(args.device), ways)
    print({"torch": torch.__version__, "transformers": transformers.__version__, "ways": ways})
    if args.profile:
        with torch.no_grad():
            profile(bench, Shape(args.rows[0], args.prompts[0], args.tokens))
    for line in lines(bench, args):
        text = json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in line.items()})
        print(text, flush=True)
        if args.json is not None:
            with args.json.open("a") as file:
                file.write(text + "\n")


if __name__ == "__main__":
    main()
