"""What a GPU does when recordings fail, memory ends or is shared."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny_models import drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.runner import Tile
from aisp_ray.engine.scheduler import FastEngine


def work(count: int = 3) -> list:
    return [request(9, 8, 16, OpenLoop(16, None, 1.0), seed=i) for i in range(count)]


def engine(model: Any, slots: int = 32) -> FastEngine:
    return FastEngine(model, slots, max_new_tokens=16, tile=16)


def tokens(found: list) -> list:
    return [[item.token_ids for item in one.items] for one in found]


@pytest.mark.parametrize("when", ["always", "while recorded"])
def test_a_step_that_cannot_be_recorded_runs_eagerly_and_memory_can_be_given_back(
    when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llama").cuda()
    expected, step = tokens(drive(engine(model), work())), Tile.step

    def waits(self: Tile, num_blocks: int) -> Any:
        if when == "always" or torch.cuda.is_current_stream_capturing():
            self.suffixes.step.max().item()
        return step(self, num_blocks)

    monkeypatch.setattr(Tile, "step", waits)
    mine, before = engine(model), torch.cuda.current_stream()
    assert tokens(drive(mine, work())) == expected
    assert not mine.slots.graphs.enabled
    assert torch.cuda.current_stream() == before
    assert sum("not captured" in record.getMessage() for record in caplog.records) == 1
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 12) or when == "always":
        torch.cuda.empty_cache()


def test_memory_that_really_ends_halves_the_tiles_and_keeps_the_tokens() -> None:
    model = tiny("llama").cuda()
    expected = tokens(drive(engine(model, 256), work(8)))
    total, held = torch.cuda.mem_get_info()[1], torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((held + (96 << 20)) / total)
        mine = FastEngine(model, 256, max_new_tokens=4096, tile=256, prefix_bytes=8 << 20)
        assert tokens(drive(mine, work(8))) == expected
        assert mine.slots.count < 256
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


HALF = """
import torch
from aisp_ray.lm.memory import free_bytes, share_gpu
share_gpu(0.5)
device, total = torch.device("cuda", 0), torch.cuda.mem_get_info()[1]
assert free_bytes(device) <= total // 2
held = torch.empty(free_bytes(device) * 9 // 10, dtype=torch.uint8, device="cuda")
print("ready", flush=True)
input()
try:
    torch.empty(total // 2, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    print("bounded", flush=True)
"""


def test_two_processes_of_half_a_gpu_each_fit_beside_each_other() -> None:
    torch.cuda.empty_cache()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", HALF], **pipes) for _ in range(2)]
    try:
        for one in both:
            assert one.stdout is not None
            assert one.stdout.readline().strip() == "ready"
        for one in both:
            assert "bounded" in one.communicate("\n")[0]
    finally:
        for one in both:
            one.kill()
