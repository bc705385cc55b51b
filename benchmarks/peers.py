"""Our engine, vLLM with and without the control law, and `generate` with a hook, on the same model, prompts and tokens.

    .venv-vllm/bin/python benchmarks/peers.py [--model FOLDER] [--prompt 150] [--tokens 64] [--dtype float32]

Needs vLLM (`make test-vllm` makes the environment). Without --model it is a random Llama of 28 million parameters. Four
prompts, 16 responses each, none of which ends early. AISP is its second iteration: a mean of 16 weighted particles and
noise. Each engine lives in a process of its own with one thread; the ways take turns, on prompts that none of them has
read, and the median of the repeats counts. Seconds are CPU seconds of that process, so neighbours matter less; memory
is its largest resident set, model included. `generate` is timed on one prompt and scaled.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

PROMPTS, SAMPLES, SIGMA = 4, 16, 0.7
WAYS = {  # what a line is called: (process, way)
    "generate with a hook, AISP": ("generate", "aisp"),
    "our engine, best-of-n": ("fast", "best_of_n"),
    "our engine, AISP": ("fast", "aisp"),
    "vLLM's own sampling, best-of-n": ("vllm", "own"),
    "vLLM with our draws, best-of-n": ("vllm", "best_of_n"),
    "AISP on vLLM": ("vllm", "aisp"),
}
BASE = "vLLM's own sampling, best-of-n"


def prompt(length: int, repeat: int, index: int, vocabulary: int) -> tuple[int, ...]:
    import numpy as np

    drawn = np.random.default_rng((length, repeat, index)).integers(3, vocabulary, length + (index % 4) * 6 - 9)
    return tuple(drawn.tolist())


def requests(args: argparse.Namespace, way: str, repeat: int, vocabulary: int) -> list[Any]:
    from aisp_ray.controls.laws import OpenLoop
    from aisp_ray.controls.weight_log import WeightEntry, WeightLog
    from aisp_ray.engine.base import RolloutRequest, StopRules
    from aisp_ray.types import Control, Proposal, Sampling

    weights = tuple((i + 1) / 136 for i in range(SAMPLES))
    log = WeightLog((WeightEntry(0, weights, (args.tokens,) * SAMPLES, SIGMA),))
    law: Control = OpenLoop(args.tokens, log, SIGMA) if way == "aisp" else Control(0)
    sampling = Sampling() if way == "aisp" else Sampling(temperature=1.0)
    return [
        RolloutRequest(
            prompt(args.prompt, repeat, i, vocabulary),
            1000 * repeat + i,
            Proposal(1, SAMPLES, law, sampling),
            args.tokens,
            StopRules(),
        )
        for i in range(PROMPTS)
    ]


def drive(engine: Any, asked: Sequence[Any]) -> int:
    """Tokens drawn."""
    for one in asked:
        engine.submit(one)
    count = 0
    while engine.num_pending:
        for _, result in engine.step():
            if isinstance(result, Exception):
                raise result
            count += result.num_generated_tokens
    return count


def make_generate(args: argparse.Namespace) -> tuple[Callable[[str, int], int], int]:
    import torch
    from transformers import AutoModelForCausalLM

    from aisp_ray.noise import normal, split_key

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()
    head = model.get_output_embeddings()
    dim, vocabulary = int(head.weight.shape[1]), int(head.weight.shape[0])

    def run(_: str, repeat: int) -> int:
        """One prompt, the tokens of all: its time is scaled by the caller."""
        ids = torch.tensor([prompt(args.prompt, repeat, 0, vocabulary)]).expand(SAMPLES, -1)
        who, step = torch.arange(SAMPLES), iter(range(args.tokens))

        def hook(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            t = torch.full_like(who, next(step))
            eps = normal(split_key([repeat]).expand(SAMPLES, 2), torch.ones_like(who), who, t, dim)
            return ((given[0].float() + SIGMA * eps[:, None]).to(given[0].dtype),)

        handle = head.register_forward_pre_hook(hook)
        size = args.tokens
        out = model.generate(
            ids, do_sample=False, max_new_tokens=size, min_new_tokens=size, eos_token_id=None, pad_token_id=0
        )
        handle.remove()
        return int(out.numel() - ids.numel())

    return run, 1


def make_fast(args: argparse.Namespace) -> tuple[Callable[[str, int], int], int]:
    import torch
    from transformers import AutoModelForCausalLM

    from aisp_ray.engine.factory import build_engine

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()
    engine = build_engine(model, "fast", slots=PROMPTS * SAMPLES, max_new_tokens=args.tokens)
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    return lambda way, repeat: drive(engine, requests(args, way, repeat, vocabulary)), PROMPTS


def make_vllm(args: argparse.Namespace) -> tuple[Callable[[str, int], int], int]:
    from aisp_ray.engine.vllm.engine import VllmEngine
    from aisp_ray.engine.vllm.setup import VllmSettings

    settings = VllmSettings(args.model, args.dtype, args.prompt + args.tokens + 64, slots=PROMPTS * SAMPLES)
    engine = VllmEngine(settings)
    vocabulary = int(engine.config.vocab_size)

    def run(way: str, repeat: int) -> int:
        if way == "own":
            return own_sampling(engine.llm, args, repeat, vocabulary)
        return drive(engine, requests(args, way, repeat, vocabulary))

    return run, PROMPTS


def own_sampling(llm: Any, args: argparse.Namespace, repeat: int, vocabulary: int) -> int:
    """vLLM's best-of-n as anybody would run it: n sequences a prompt at temperature 1. Tokens drawn."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for i in range(PROMPTS):
        parameters = SamplingParams(
            n=SAMPLES,
            temperature=1.0,
            max_tokens=args.tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        llm.add_request(str(i), {"prompt_token_ids": list(prompt(args.prompt, repeat, i, vocabulary))}, parameters)
    count = 0
    while llm.has_unfinished_requests():
        for output in llm.step():
            count += sum(len(one.token_ids) for one in output.outputs)
    return count


MAKE = {"generate": make_generate, "fast": make_fast, "vllm": make_vllm}


def serve(kind: str, args: argparse.Namespace, pipe: Any) -> None:
    """A process: one engine, which runs what the pipe asks for and answers (tokens, CPU seconds, peak MiB)."""
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        run, prompts = MAKE[kind](args)
        pipe.send("ready")
        while (asked := pipe.recv()) is not None:
            started = time.process_time()
            tokens = run(*asked)
            seconds = time.process_time() - started
            pipe.send((tokens, seconds, prompts, _peak_mib()))


def _peak_mib() -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def random_llama(folder: str) -> str:
    from rollouts import llama

    llama().save_pretrained(folder)
    return folder


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for kind in dict.fromkeys(kind for kind, _ in WAYS.values()):  # one after the other: loading is not timed
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(kind, args, there), daemon=True)
        process.start()
        processes.append(process)
        assert here.recv() == "ready"
        pipes[kind] = here
    speeds: dict[str, list[float]] = {name: [] for name in WAYS}
    peaks: dict[str, float] = {}
    for repeat in range(args.repeats + 1):  # the first warms up and is not counted
        for number, (name, (kind, way)) in enumerate(WAYS.items()):
            if kind == "generate" and repeat == 0:
                continue
            pipes[kind].send((way, 100 * (repeat + 1) + number))
            tokens, seconds, prompts, peak = pipes[kind].recv()
            assert tokens == prompts * SAMPLES * args.tokens, (name, tokens)
            peaks[name] = peak
            if repeat:
                speeds[name].append(tokens / seconds)
            print(f"{name}, run {repeat}: {tokens / seconds:.0f} tokens/s", file=sys.stderr, flush=True)
    for pipe in pipes.values():
        pipe.send(None)
    base = statistics.median(speeds[BASE])
    return [
        {"way": name, "tokens_per_s": statistics.median(runs), "runs": runs, "peak_mib": peaks[name]}
        | {"time_against_vllm": base / statistics.median(runs)}
        for name, runs in speeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--prompt", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or random_llama(folder)
        lines = measure(args)
    print(
        f"{PROMPTS} prompts of {args.prompt} tokens, {SAMPLES} x {args.tokens} tokens each, {args.dtype}, one thread\n"
    )
    print("| | tokens/s | lowest to highest | peak MiB | time against vLLM's own sampling |\n|---|---|---|---|---|")
    for line in lines:
        spread = f"{min(line['runs']):.0f} to {max(line['runs']):.0f}"
        ratio = f"{line['time_against_vllm']:.2f}"
        print(f"| {line['way']} | {line['tokens_per_s']:.0f} | {spread} | {line['peak_mib']:.0f} | {ratio} |")
    if args.json:
        Path(args.json).write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
