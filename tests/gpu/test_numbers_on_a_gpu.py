"""Numbers that a GPU must share with a CPU: noise, uniforms, scores."""

from __future__ import annotations

import pytest
import torch
from test_shared_prefix import SHARING, group, make

from aisp_ray.noise import normal, philox, split_key, uniform


def names(device: str, rows: int = 4096) -> tuple[torch.Tensor, ...]:
    key = split_key([(0x1234567 * i) & ((1 << 64) - 1) for i in range(rows)], device)
    at = torch.arange(rows, device=device)
    return key, at % 17, at % 64, at


def test_the_integers_and_uniform_numbers_of_the_generator_are_equal() -> None:
    words = [
        philox((key[:, :1], step[:, None], who[:, None], at[:, None]), (key[:, :1], key[:, 1:]))
        for key, at, who, step in (names("cpu"), names("cuda"))
    ]
    for one, other in zip(*words, strict=True):
        assert torch.equal(one, other.cpu())
    assert torch.equal(uniform(*names("cpu")), uniform(*names("cuda")).cpu())


def test_normal_numbers_differ_in_rare_last_bits_only() -> None:
    here, there = normal(*names("cpu"), 4096), normal(*names("cuda"), 4096).cpu()
    torch.testing.assert_close(there, here, rtol=2e-7, atol=1e-30)
    assert (here != there).double().mean() < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "mistral, window", "gpt_oss, sinks"])
def test_packed_scores_are_those_of_padded_texts(name: str, dtype: torch.dtype, tolerance: float) -> None:
    groups = [group(23, 40, (30, 17, 17, 3, 1)), group(24, 12, (9, 4), shared=[12, 3])]
    reader = make(SHARING[name], device="cuda", dtype=dtype, across_prompts=True)
    assert reader.packed is not None
    found = reader.read(groups)[0]
    reader.packed = None
    for values, others in zip(found, reader.read(groups)[0], strict=True):
        assert values == pytest.approx(others, abs=tolerance)
