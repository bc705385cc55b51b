from __future__ import annotations

import pytest
import torch

from aisp_ray.noise import normal, philox, split_key, uniform


def names(rows, iteration=0, particle=0, step=0, key=7):
    full = lambda value: torch.full((rows,), value, dtype=torch.int64)  # noqa: E731
    return [split_key([key] * rows), full(iteration), full(particle), full(step)]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0x00000000, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_known_answers_of_random123(word, expected):
    words = torch.full((1,), word, dtype=torch.int64)
    assert tuple(int(x) for x in philox((words,) * 4, (words, words))) == expected


def test_philox_gives_the_known_answer_of_pi():
    at = lambda value: torch.tensor([value], dtype=torch.int64)  # noqa: E731
    counter = tuple(at(c) for c in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344))
    words = philox(counter, (at(0xA4093822), at(0x299F31D0)))
    assert tuple(int(x) for x in words) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_control_noise_is_standard_normal():
    args = names(400)
    args[2] = torch.arange(400)
    x = normal(*args, 256).double().flatten()  # 102,400 draws
    n = x.numel()
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / n) ** 0.5
    ranks = (torch.erf(x.sort().values / 2**0.5) + 1) / 2
    gap = (ranks - (torch.arange(n) + 0.5) / n).abs().max()
    assert gap < 1.95 / n**0.5, "Kolmogorov-Smirnov at 0.1 %"


def test_neighbours_in_every_name_are_uncorrelated():
    base = normal(*names(1), 4096)[0]
    for change in ({"iteration": 1}, {"particle": 1}, {"step": 1}, {"key": 8}, {"key": 7 + 2**32}):
        other = normal(*names(1, **change), 4096)[0]
        assert abs(torch.corrcoef(torch.stack([base, other]))[0, 1]) < 4 / 4096**0.5, change


def test_token_draws_are_uniform_and_apart_from_control_noise():
    args = names(20_000)
    args[3] = torch.arange(20_000)
    u = uniform(*args)
    assert 0 < u.min() < 1e-3
    assert 1 - 1e-3 < u.max() < 1
    counts = torch.histc(u, bins=16, min=0, max=1)
    assert ((counts - 1250) ** 2 / 1250).sum() < 37.7, "chi-square, 15 degrees of freedom, 0.1 %"
    assert abs(torch.corrcoef(torch.stack([u, normal(*args, 1)[:, 0].double()]))[0, 1]) < 4 / 20_000**0.5


def test_any_slice_and_any_batch_give_the_same_values():
    args = names(6)
    args[2] = torch.arange(6)
    whole = normal(*args, 10)
    torch.testing.assert_close(normal(*args, 7), whole[:, :7], rtol=0, atol=0)
    rows = [4, 1]
    torch.testing.assert_close(normal(*(arg[rows] for arg in args), 10), whole[rows], rtol=0, atol=0)
