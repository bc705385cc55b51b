"""A row is the same, bit for bit, whatever its neighbours, its slot, its order of arrival and its engine."""

from __future__ import annotations

import pytest
import torch
from tiny_models import bits, drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.types import Sampling

LOG = WeightLog(
    (
        WeightEntry(0, (0.1, 0.2, 0.3, 0.2, 0.1, 0.1), (12, 3, 9, 12, 12, 5), 1.0),
        WeightEntry(1, (0.5, 0.1, 0.1, 0.1, 0.1, 0.1), (12, 12, 2, 8, 12, 12), 1.0),
    )
)
WANT = frozenset({"logprob", "prelogits"})


def probe(**more: object) -> RolloutRequest:
    """The request whose rows are watched."""
    control = OpenLoop(12, LOG, 1.0)
    return request(11, 6, 12, control, iteration=2, stop=StopRules((5, 6, 7)), want=WANT, **more)


def others() -> list[RolloutRequest]:
    """Neighbours of every kind: other lengths, controls, sampling, stops, prefixes."""
    return [
        request(40, 7, 12, OpenLoop(12, None, 2.0), seed=1),
        request(3, 5, 5, seed=2, sampling=Sampling(1.0, top_p=0.9)),
        request(11, 6, 12, OpenLoop(12, None, 1.0), seed=0, want=frozenset({"token_kl"})),
        request(19, 3, 9, seed=4, prefixes=((3, 4, 5), (), (9,)), stop=StopRules((8,), (), 3)),
    ]


def engine(model: object, slots: int = 16, tile: int = 8) -> FastEngine:
    return FastEngine(model, slots, max_new_tokens=12, tile=tile)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "lfm2"])
@pytest.mark.usefixtures("products")
def test_neighbours_arrival_and_slots_change_no_bit(name: str) -> None:
    change_no_bit(tiny(name))


def test_neighbours_arrival_and_slots_change_no_bit_of_bfloat16() -> None:
    change_no_bit(tiny("llama", torch.bfloat16))  # never by the kernels


def change_no_bit(model: object) -> None:
    (alone,) = drive(engine(model), [probe()])
    expected = bits(alone)
    late = drive(engine(model), [*others(), probe()])
    early = drive(engine(model), [probe(), *others()])
    scarce = drive(engine(model, slots=8), [*others()[:2], probe(), *others()[2:]])
    plenty = drive(engine(model, slots=32), [*others()[::-1], probe()])
    assert bits(late[-1]) == expected
    assert bits(early[0]) == expected
    assert bits(scarce[2]) == expected
    assert bits(plenty[-1]) == expected


def test_particles_split_over_two_engines_are_the_same_rows() -> None:
    model = tiny("llama")
    (whole,) = drive(engine(model), [probe()])
    (first,) = drive(engine(model), [probe(particles=(0, 1, 2))])
    second = drive(engine(model), [*others(), probe(particles=(3, 4, 5))])[-1]
    assert bits(first) + bits(second) == bits(whole)


def test_a_mean_rebuilt_from_the_log_gives_the_rows_of_one_gone_on_from() -> None:
    model = tiny("llama")
    carried = engine(model)
    for length in range(3):  # iteration by iteration, as a run does
        log = WeightLog(LOG.entries[:length])
        drive(carried, [request(11, 6, 12, OpenLoop(12, log, 1.0), iteration=length)])
    updates = carried.means.updates
    (on,) = drive(carried, [probe()])
    assert carried.means.updates == updates  # it was there
    rebuilt = engine(model)
    (off,) = drive(rebuilt, [probe()])
    assert rebuilt.means.updates == 2
    assert bits(on) == bits(off)
    assert on.control_norm == off.control_norm > 0


def test_the_number_of_slots_changes_no_bit_at_equal_tiles() -> None:
    model = tiny("llama")
    (few,) = drive(engine(model, slots=8), [probe()])
    many = drive(engine(model, slots=40), [*others(), probe()])[-1]
    assert bits(few) == bits(many)


def test_sampled_tokens_do_not_depend_on_neighbours() -> None:
    model = tiny("llama")
    sampled = request(11, 6, 12, sampling=Sampling(1.2, top_p=0.95), want=WANT)
    (alone,) = drive(engine(model), [sampled])
    among = drive(engine(model), [*others(), sampled])[-1]
    assert bits(alone) == bits(among)
    assert len({item.token_ids for item in alone.items}) == 6
