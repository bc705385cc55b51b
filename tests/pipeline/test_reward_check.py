"""The accuracy of a reward model on labelled pairs, and its interval."""

import asyncio
import json
import math

import pytest

from aisp_ray.data.preference import Preference
from aisp_ray.data.stream import rows_locally
from aisp_ray.errors import DataError
from aisp_ray.pipeline.reward_check import Accuracy, accuracy, read_pairs
from aisp_ray.rng import generator
from aisp_ray.types import Scores


class Lengths:
    """A reward model that likes long responses."""

    async def score(self, prompt, responses):
        if "refuse" in prompt.text:
            raise DataError("too long")
        rewards = tuple(math.nan if "?" in text else float(len(text)) for text in responses)
        return Scores(rewards)


def test_right_wrong_tied_and_unusable_pairs_are_told_apart(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        """{"prompt": "p", "chosen": "longer", "rejected": "long"}
{"prompt": "q", "chosen": "no", "rejected": "a longer one"}
{"prompt": "r", "chosen": "same", "rejected": "size"}
{"prompt": "s", "chosen": "longer", "rejected": "l?"}
{"prompt": "refuse", "chosen": "longer", "rejected": "l"}
{"prompt": "t", "chosen": "alone"}
"""
    )
    found = asyncio.run(accuracy(rows_locally(Preference(path=str(path))), Lengths()))
    assert found == Accuracy(1.5, 3, 3)
    assert found.says().startswith("prefers the labelled response in 50.0% of 3 pairs (")
    assert found.says().endswith("; 3 rows could not be used")


def test_every_pair_of_a_prompt_counts_and_the_same_pair_once(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        ("p", "a", "b"),
        ("p", "a", "c"),
        ("q", "a", "b"),
        ("p", "a", "b"),
        ("", "a", "b"),
        ("", "a", "b"),
        ("p", "b", "a"),
    ]
    path.write_text(
        "\n".join(json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) for row in rows)
    )
    read = [(row.text, row.meta["preferred"], row.meta["rejected"]) for row in read_pairs(str(path)) if not row.error]
    assert read == [("p", "a", "b"), ("p", "a", "c"), ("q", "a", "b"), ("p", "b", "a")]
    assert sum(bool(row.error) for row in read_pairs(str(path))) == 2


def test_the_interval_is_wilsons_and_holds_as_often_as_it_says():
    low, high = Accuracy(7.0, 10).interval
    assert (low, high) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert Accuracy(0.0, 5).interval == pytest.approx((0.0, 0.4345), abs=1e-4)
    draws = generator("wilson").binomial(40, 0.7, 2000)
    ends = {k: Accuracy(float(k), 40).interval for k in {*draws.tolist()}}
    assert 0.93 <= sum(ends[k][0] <= 0.7 <= ends[k][1] for k in draws.tolist()) / 2000 <= 0.98
