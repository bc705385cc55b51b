"""Shared-prefix scoring against padded batches of full texts: `python benchmarks/scoring.py [--json FILE]`.

Both read the same responses with the same random decoder in float32, in the same process, turn by turn; the ratio is
padded time over shared time, the median of the turns. The padded side forms batches of similar length under the same
token budget. Prefixes are dropped before each turn, so the shared side pays for reading the prompt. One thread,
processor seconds: other programs on the machine disturb these less.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from aisp_ray.rewards._reader import Reader
from aisp_ray.rewards._tokens import TokenRow
from aisp_ray.rewards.sequence_classifier import SequenceClassifier


@dataclass(frozen=True)
class Case:
    """prompt and response in tokens; responses vary from half to one and a half times `response` where `vary`."""

    name: str
    prompt: int
    response: int
    n: int = 32
    kappa: int = 1
    vary: bool = False


CASES = (
    Case("prompt512_response128", 512, 128),
    Case("kappa8", 512, 128, kappa=8),
    Case("prompt64_response128", 64, 128),
    Case("prompt512_response64to192", 512, 128, vary=True),
    Case("prompt2048_response128_n8", 2048, 128, n=8),
)


def make_model(layers: int, width: int) -> LlamaForSequenceClassification:
    """A random decoder with one score."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        max_position_embeddings=4096,
        num_labels=1,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config).eval().requires_grad_(False)


def make_groups(case: Case, seed: int) -> list[tuple[tuple[int, ...], list[TokenRow]]]:
    """kappa rounds of n rows after one prompt, longest first."""
    rng = random.Random(seed)
    head = tuple(rng.choices(range(8192), k=case.prompt))
    rounds = []
    for _ in range(case.kappa):
        rows = []
        for _ in range(case.n):
            length = rng.randint(case.response // 2, case.response * 3 // 2) if case.vary else case.response
            rows.append(TokenRow(head + tuple(rng.choices(range(8192), k=length)), case.prompt))
        rounds.append((head, sorted(rows, key=lambda row: -len(row.ids))))
    return rounds


def timed(reader: Reader, rounds: list) -> tuple[float, list[float]]:
    """(processor seconds, rewards) of all rounds, one after the other as in a search."""
    if reader.packed is not None:
        reader.packed.store.trim(0)
    started = time.process_time()
    rewards = [value for group in rounds for value in reader.read([group])[0][0]]
    return time.process_time() - started, rewards


def measure(case: Case, readers: tuple[Reader, Reader], turns: int) -> dict[str, object]:
    """Median ratio of a case, and how far the scores are apart."""
    shared, padded = readers
    ratios, seconds, apart = [], [], 0.0
    for turn in range(turns):
        rounds = make_groups(case, turn)
        fast, ours = timed(shared, rounds)
        slow, reference = timed(padded, rounds)
        ratios.append(slow / fast)
        seconds.append((fast, slow))
        apart = max(apart, max(abs(a - b) for a, b in zip(ours, reference, strict=True)))
    return {
        "name": case.name,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "shared_seconds": round(statistics.median(fast for fast, _ in seconds), 4),
        "padded_seconds": round(statistics.median(slow for _, slow in seconds), 4),
        "largest_difference": apart,
    }


def main() -> None:
    """Measure all cases, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each case; the median counts")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--only", help="names of cases, separated by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(arguments.layers, arguments.width)
    spec = SequenceClassifier(model="benchmark", dtype="float32")
    parts = spec._parts(model)
    padded_spec = SequenceClassifier(model="benchmark", dtype="float32", shared_prefix=False)
    readers = Reader(model, *parts, spec), Reader(model, *parts, padded_spec)
    measure(Case("warm-up", 64, 32, n=4), readers, 1)
    results = []
    for case in CASES:
        if arguments.only and case.name not in arguments.only.split(","):
            continue
        results.append(measure(case, readers, arguments.turns))
        print("{name:28} {ratio:6.2f}x  {shared_seconds:8.3f} s against {padded_seconds:8.3f} s"
              "  apart {largest_difference:.1e}".format(**results[-1]), flush=True)  # fmt: skip
    if arguments.json:
        about = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
        arguments.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
