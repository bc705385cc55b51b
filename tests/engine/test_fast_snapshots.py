"""Suffixes kept for methods that continue responses: only true ones, and no more than prompts may take."""

from __future__ import annotations

import pytest
from tiny_models import bits, drive, request, tiny

from aisp_ray.engine.base import StopRules
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.types import Sampling


def decode(ids: object) -> str:
    return "".join(chr(200 + token) for token in ids)


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_a_row_that_a_stop_string_cut_is_continued_as_if_decoded_again(name: str) -> None:
    """A convolution's states have read the tokens behind the cut; keys of those tokens are left out."""
    model = tiny(name)
    engine = lambda: FastEngine(model, 8, decode, max_new_tokens=20, tile=8)  # noqa: E731
    first = request(n=1, tokens=12, sampling=Sampling(1.0), prefixes=((),))
    (whole,) = drive(engine(), [first])
    ids = whole.items[0].token_ids
    stop = StopRules(strings=(decode(ids[4:6]),))
    kept = engine()
    (found,) = drive(kept, [request(n=1, tokens=12, sampling=Sampling(1.0), prefixes=((),), stop=stop)])
    cut = found.items[0].token_ids
    assert (cut, found.items[0].finish_reason) == (ids[:6], "stop_string")
    # another response that shares all of these tokens but the last, which no state may have read
    given = (*cut[:-1], (cut[-1] + 1) % 90)
    asked = request(n=1, tokens=20, iteration=1, prefixes=(given,), want=frozenset({"logprob", "prelogits"}))
    assert bits(drive(kept, [asked])[0]) == bits(drive(engine(), [asked])[0])
    assert kept.stats()["resumed_tokens"] == (5 if name == "llama" else 0)


@pytest.mark.parametrize("limit", [1, 60_000, 200_000])
def test_snapshots_stay_within_the_bytes_of_prompts(limit: int) -> None:
    model = tiny("llama")
    engine = FastEngine(model, 16, max_new_tokens=32, tile=16, prefix_bytes=limit)
    free = FastEngine(model, 16, max_new_tokens=32, tile=16)
    prefixes = [((),) * 8] * 2
    for iteration in range(3):
        work = [
            request(n=8, tokens=32, seed=seed, iteration=iteration, sampling=Sampling(1.0), prefixes=prefixes[seed])
            for seed in range(2)
        ]
        found, expected = drive(engine, work), drive(free, work)
        assert [bits(one) for one in found] == [bits(one) for one in expected]
        own = sum(prefix.own_bytes for prefix in engine.store._held.values())
        assert engine.store.num_bytes <= max(limit, own)
        prefixes = [tuple(item.token_ids[: 3 * i] for i, item in enumerate(one.items)) for one in found]
    assert free.stats()["prefix_bytes"] > 200_000
    assert engine.stats()["resumed_tokens"] > 0 or limit == 1
