"""How much faster the engine draws AISP rollouts than `generate`, on one CPU thread, with equal tokens.

    python benchmarks/rollouts.py [--json FILE] [--markdown FILE] [--only NAME ...] [--full]

The naive way, measured in the same run: each iteration of each prompt calls `generate` on the prompt repeated n times,
with the controls added by a hook on the LM head; it reads the prompt again every time. Its time is a sum over
independent calls, so without --full only the first prompt is timed and its seconds are scaled; its tokens are compared
with the engine's. CPU seconds of this process; both ways are run several times in turn and the fastest run of each
counts, so that neighbours on the machine matter less.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.engine.means import Source
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.lm.head import Head
from aisp_ray.types import Proposal
from aisp_ray.weights import importance_weights

SIGMA, NUM_SAMPLES = 0.7, 16
REPEATS = 2  # runs of each way, in turn


Tokens = dict[tuple[int, int], list[tuple[int, ...]]]  # (prompt, iteration) -> the responses' token ids


@dataclass(frozen=True)
class Work:
    """One measurement: P prompts of L tokens, kappa iterations of 16 particles, at most T tokens each."""

    name: str
    prompts: int
    length: int
    tokens: int
    iterations: int
    slots: int
    tile: int  # slots of one forward
    timed: int  # prompts that the naive way is timed on
    end_tokens: int = 0  # ids of the vocabulary that end a response
    at_least: float | None = None  # the ratio that must be reached


WORKS = (
    Work("prompt300", 4, 300, 64, 4, slots=64, tile=64, timed=1, at_least=4.5),
    Work("prompt1024", 1, 1024, 64, 2, slots=16, tile=16, timed=1, at_least=9.0),
    Work("short_answers", 4, 300, 64, 4, slots=64, tile=64, timed=1, end_tokens=430, at_least=8.0),
    Work("refill", 16, 64, 64, 2, slots=32, tile=32, timed=0, end_tokens=683),
)


def llama() -> Any:
    """A random model of Llama's architecture, 28 million parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8192,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval()


def prompt(work: Work, index: int) -> tuple[int, ...]:
    """Prompt lengths differ by a few tokens, as real ones do; their mean is `work.length`."""
    length = work.length + (index % 4) * 6 - 9 if work.prompts > 1 else work.length
    return tuple(np.random.default_rng((work.length, index)).integers(0, 8192, length).tolist())


def stop_ids(work: Work) -> tuple[int, ...]:
    """End tokens drawn from the vocabulary. How long responses get is measured and reported (about 20 tokens)."""
    return tuple(np.random.default_rng(1).choice(8192, work.end_tokens, replace=False).tolist())


def next_log(log: WeightLog, iteration: int, tokens: Sequence[Sequence[int]]) -> WeightLog:
    """AISP's update under an arbitrary reward of the token ids."""
    rewards = [float(np.mean([token % 97 for token in ids])) for ids in tokens]
    weights = importance_weights(rewards, 5.0)
    return WeightLog((*log.entries, WeightEntry(iteration, tuple(weights), tuple(map(len, tokens)), SIGMA)))


def run_engine(model: Any, work: Work) -> tuple[float, Tokens, FastEngine]:
    """CPU seconds of the whole work, prefills included, and the tokens of every iteration.

    The engine is built before, as the model is: once for as many prompts as there are.
    """
    engine = FastEngine(model, work.slots, max_new_tokens=work.tokens, tile=work.tile, prefix_bytes=1 << 30)
    started = time.process_time()
    logs = dict.fromkeys(range(work.prompts), WeightLog())
    tickets: dict[int, tuple[int, int]] = {}
    found: Tokens = {}
    stop = StopRules(stop_ids(work))

    def submit(index: int, iteration: int) -> None:
        control = OpenLoop(work.tokens, logs[index] if iteration else None, SIGMA)
        request = RolloutRequest(
            prompt(work, index), index, Proposal(iteration, NUM_SAMPLES, control), work.tokens, stop
        )
        tickets[engine.submit(request)] = (index, iteration)

    for index in range(work.prompts):
        submit(index, 0)
    while engine.num_pending:
        for ticket, result in engine.step():
            if isinstance(result, Exception):
                raise result
            index, iteration = tickets[ticket]
            found[index, iteration] = [item.token_ids for item in result.items]
            logs[index] = next_log(logs[index], iteration, found[index, iteration])
            if iteration + 1 < work.iterations:
                submit(index, iteration + 1)
    return time.process_time() - started, found, engine


@torch.no_grad()
def run_naive(model: Any, work: Work, prompts: int) -> tuple[list[float], Tokens]:
    """CPU seconds of `generate` with a hook on the LM head for each of the first `prompts` prompts, and its tokens."""
    head, ends = Head(model), set(stop_ids(work))
    found: Tokens = {}
    seconds = []
    for index in range(prompts):
        started = time.process_time()
        log, ids = WeightLog(), prompt(work, index)
        for iteration in range(work.iterations):
            source = Source(index, head, model.device, lambda _: [])
            mean = log.fold(source, work.tokens)  # [t, d]
            controls = mean + SIGMA * source.noise(iteration, range(NUM_SAMPLES), work.tokens)  # [n, t, d]
            step = iter(range(work.tokens))
            add = lambda _, args, controls=controls, step=step: (args[0] + controls[:, next(step)][:, None],)  # noqa: E731
            handle = model.lm_head.register_forward_pre_hook(add)
            out = model.generate(
                torch.tensor([ids]).expand(NUM_SAMPLES, -1),
                attention_mask=torch.ones(NUM_SAMPLES, len(ids), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=work.tokens,
                eos_token_id=sorted(ends) or None,
                pad_token_id=0,
            )[:, len(ids) :]
            handle.remove()
            found[index, iteration] = [cut(row.tolist(), ends) for row in out]
            log = next_log(log, iteration, found[index, iteration])
        seconds.append(time.process_time() - started)
    return seconds, found


def cut(ids: list[int], ends: set[int]) -> tuple[int, ...]:
    """Up to and with the first end token."""
    last = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return tuple(ids[: last + 1])


def check_memory(work: Work, engine: FastEngine) -> float:
    """Keys and values held, as a part of P x L + rows x T tokens.

    Raises:
        AssertionError: more is held than that.
    """
    token_bytes = sum(layout.token_bytes for layout in engine.slots.layouts)
    tokens = sum(len(prompt(work, i)) for i in range(work.prompts)) + engine.slots.count * work.tokens
    hidden = work.prompts * engine.head.dim * 4
    part = engine.stats()["kv_bytes"] / (tokens * token_bytes + hidden)
    assert part <= 1.0, f"keys and values take {part:.3f} of P x L + rows x T tokens"
    return part


def measure(model: Any, work: Work, full: bool) -> dict[str, Any]:
    timed = work.prompts if full and work.timed else work.timed
    naive, expected, engine_seconds = [math.inf] * timed, {}, math.inf
    for _ in range(REPEATS if timed else 1):
        seconds, tokens, engine = run_engine(model, work)
        engine_seconds = min(engine_seconds, seconds)
        each, expected = run_naive(model, work, timed)
        naive = list(map(min, naive, each))
    stats = engine.stats()
    generated = [len(ids) for rows in tokens.values() for ids in rows]
    line = {
        "name": work.name,
        "prompts": work.prompts,
        "prompt_tokens": work.length,
        "samples": NUM_SAMPLES,
        "iterations": work.iterations,
        "max_new_tokens": work.tokens,
        "mean_tokens": round(float(np.mean(generated)), 1),
        "slots": work.slots,
        "tile": work.tile,
        "engine_seconds": round(engine_seconds, 2),
        "engine_tokens_per_second": round(sum(generated) / engine_seconds, 1),
        "useful_row_steps": round(stats["useful_row_steps"] / stats["row_steps"], 4),
        "useful_row_steps_while_rows_wait": round(stats["busy_useful_row_steps"] / max(stats["busy_row_steps"], 1), 4),
        "kv_part_of_bound": round(check_memory(work, engine), 4),
        "kernels": engine.fingerprint["kernels"],
    }
    if timed:
        line["naive_seconds"] = round(sum(naive) * work.prompts / timed, 2)
        line["naive_prompts_timed"] = timed
        line["ratio"] = round(line["naive_seconds"] / engine_seconds, 2)
        pairs = [(a, b) for name in expected for a, b in zip(expected[name], tokens[name], strict=True)]
        line["sequences_compared"] = len(pairs)
        line["sequences_differing"] = sum(a != b for a, b in pairs)
        line["at_least"] = work.at_least
    return line


def versions() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def as_markdown(lines: list[dict[str, Any]]) -> str:
    columns = ("name", "ratio", "naive_seconds", "engine_seconds", "engine_tokens_per_second", "mean_tokens")
    columns += ("useful_row_steps", "useful_row_steps_while_rows_wait", "kv_part_of_bound", "sequences_differing")
    rows = [" | ".join(columns), " | ".join("---" for _ in columns)]
    rows += [" | ".join(str(line.get(column, "")) for column in columns) for line in lines]
    about = "\n".join(f"- {name}: {value}" for name, value in versions().items())
    table = "\n".join(f"| {row} |" for row in rows)
    note = "Float32, one thread, CPU seconds, the fastest of repeated runs; written by benchmarks/rollouts.py."
    return f"# Rollouts against `generate`\n\n{about}\n\n{note}\n\n{table}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write one JSON object a line to this file")
    parser.add_argument("--markdown", type=Path, help="write a table to this file")
    parser.add_argument("--only", nargs="*", default=None, help="names of the measurements to run")
    parser.add_argument("--full", action="store_true", help="time the naive way on every prompt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model, lines = llama(), []
    for work in WORKS:
        if args.only is not None and work.name not in args.only:
            continue
        lines.append(measure(model, work, args.full) | versions())
        print({name: value for name, value in lines[-1].items() if name not in versions()}, flush=True)
        if args.json is not None:
            args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if args.markdown is not None:
        args.markdown.write_text(as_markdown(lines))
    missed = [line["name"] for line in lines if line.get("at_least") and line["ratio"] < line["at_least"]]
    wrong = [line["name"] for line in lines if line.get("sequences_differing")]
    if missed or wrong:
        raise SystemExit(f"below the bar: {missed or 'none'}; tokens differ: {wrong or 'none'}")


if __name__ == "__main__":
    main()
