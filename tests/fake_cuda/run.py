"""Run the engine on a fake GPU and print what was seen, a line of JSON for each architecture.

    python tests/fake_cuda/run.py GUARD.so ARCHITECTURE[:flash] ...

A process of its own, which ends by `os._exit`: the guard disturbs PyTorch's way out. tests/engine must be importable.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

import tiny_models
import torch
import transformers
from fakes import DEVICE, Spy, fake_cuda

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.types import Sampling

TOKENS, N = 9, 4  # of most requests; two windows of steps
STEADY = 20
ALL = frozenset({"logprob", "token_kl", "prelogits"})
KINDS: dict[str, dict[str, Any]] = {
    "aisp": {"control": "mean"},
    "best of n": {"sampling": Sampling(1.0, top_p=0.95)},
    "everything": {
        "control": "mean",
        "want": ALL,
        "stop": StopRules((7, 9), min_new_tokens=4),
        "sampling": Sampling(0.8, 0.9, 20, branch_first=True),
        "prefixes": ((4, 5, 6),) * N,
    },
}


def model(name: str) -> Any:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return tiny_models.BUILDERS[name]().eval()
    finally:
        torch.set_default_dtype(torch.float32)


def request(seed: int, tokens: int = TOKENS, control: str = "", **more: Any) -> Any:
    log = WeightLog((WeightEntry(0, (1 / N,) * N, (tokens,) * N, 0.7),))
    law = OpenLoop(tokens, log, 0.7) if control == "mean" else None
    return tiny_models.request(20 + 13 * seed, N, tokens, law, seed=seed, **more)


def drain(engine: FastEngine) -> None:
    while engine.num_pending:
        for _, result in engine.step():
            if isinstance(result, Exception):
                raise result


def steady(engine: FastEngine, spy: Spy) -> dict[str, Any]:
    """One window of steps in which no row begins or ends."""
    engine.submit(request(0, STEADY, control="mean"))
    engine.step()
    spy.report.syncs.clear()
    spy.report.uploads.clear()
    spy.report.launches = 0
    engine.step()
    seen = {"syncs": dict(spy.report.syncs), "uploads": dict(spy.report.uploads), "launches": spy.report.launches}
    drain(engine)
    return seen


def watch(name: str, spy: Spy, flash: bool) -> dict[str, Any]:
    engine = FastEngine(model(name), 2 * N, max_new_tokens=STEADY, tile=2 * N, ways=Ways(flash=flash))
    started, captured = time.perf_counter(), {}
    for kind, options in KINDS.items():
        before = len(spy.report.captured)
        for seed in range(2 if kind == "aisp" else 1):
            engine.submit(request(seed, **options))
        drain(engine)
        captured[kind] = spy.report.captured[before:]
    return {
        "device": engine.fingerprint["device"],
        "enabled": engine.slots.graphs.enabled,
        "captured": captured,
        "steady": steady(engine, spy),
        "illegal": spy.report.illegal,
        "replays": spy.report.replays,
        "seconds": time.perf_counter() - started,
    }


def main(guard: str, *names: str) -> None:
    transformers.logging.set_verbosity_error()
    for name in names:
        architecture, _, way = name.partition(":")
        try:
            with fake_cuda(guard) as spy, torch.no_grad():
                found = watch(architecture, spy, way == "flash")
        except Exception:
            found = {"error": traceback.format_exc()}
        print(json.dumps({"name": name, **found}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
