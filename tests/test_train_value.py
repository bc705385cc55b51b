from __future__ import annotations

import asyncio

import numpy as np
import pytest

from aisp_ray.cluster.models import Models
from aisp_ray.commands.train_value import main, make_plan
from aisp_ray.errors import DataError
from aisp_ray.pipeline.value_parts import Parts
from aisp_ray.pipeline.value_training import Collected, ValueTraining, collect, is_held_out, take_kept
from aisp_ray.types import Prompt, Rollout, Rollouts, Scores


class FakePolicy:
    """Pre-logits that say which prompt and particle they are from; slower for early prompts."""

    async def rollout(self, prompt, proposal, seed):
        await asyncio.sleep(0.01 / (1 + prompt.ordinal))
        if prompt.text == "bad":
            raise DataError("the prompt is empty")
        assert proposal.want == {"prelogits"}
        rows = [np.full((2, 3), 10 * prompt.ordinal + i, dtype=np.float32) for i in range(proposal.num_samples)]
        items = tuple(Rollout(i, f"{i}", (1, 2), "stop", 2, prelogits=rows[i]) for i in range(proposal.num_samples))
        return Rollouts(0, items, 5, seconds=0.5)


class FakeReward:
    async def score(self, prompt, responses):
        return Scores(tuple(float("nan") if text == "1" else float(prompt.ordinal) for text in responses), seconds=0.25)


def prompts(count):
    return [Prompt(f"x/y/{i:08d}", i, "x", "bad" if i == 3 else "good") for i in range(count)]


def collected(count=12, in_flight=16, **settings):
    found, models = Collected(), Models(FakePolicy(), FakeReward(), {}, in_flight)
    asyncio.run(collect(prompts(count), models, ValueTraining(samples=3, **settings), found))
    return found


def test_every_response_is_labelled_with_its_own_reward_in_input_order():
    found = collected()
    assert found.num_skipped == 1
    names = ("num_samples", "num_reward_calls", "num_generated_tokens")
    assert (len(found.traces), *map(found.total, names)) == (11, 33, 33, 66)
    assert found.total("policy_seconds") == 5.5
    assert len(found.train) + len(found.held_out) == 22, "a response without a reward is left out"
    for part in (found.train, found.held_out):
        origins = [float(example.prelogits[0, 0]) for example in part]
        assert origins == sorted(origins)
        assert all(example.reward == origin // 10 for example, origin in zip(part, origins, strict=True))


def test_the_data_do_not_depend_on_what_is_in_flight():
    one, many = collected(in_flight=1), collected(in_flight=12)
    assert [e.reward for e in one.train] == [e.reward for e in many.train]


class Stopping(FakePolicy):
    """Breaks off at the seventh call."""

    calls = 0

    async def rollout(self, prompt, proposal, seed):
        self.calls += 1
        if self.calls == 7:
            raise KeyboardInterrupt
        return await super().rollout(prompt, proposal, seed)


def test_a_training_that_was_stopped_draws_nothing_twice(tmp_path):
    settings, asked = ValueTraining(samples=3), []
    parts = Parts(tmp_path / "value.safetensors", {"seed": 0})
    models = Models(Stopping(), FakeReward(), {}, 1)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(collect(prompts(12), models, settings, Collected(), parts))

    class Counting(FakePolicy):
        async def rollout(self, prompt, proposal, seed):
            asked.append(prompt.ordinal)
            return await super().rollout(prompt, proposal, seed)

    found, whole = Collected(), collected()
    left = take_kept(parts, prompts(12), settings, found)
    asyncio.run(collect(left, Models(Counting(), FakeReward(), {}, 4), settings, found, parts))
    assert sorted(asked) == [3, 6, 7, 8, 9, 10, 11]  # prompt 3 cannot be used, and 6 was not answered
    for mine, theirs in ((found.train, whole.train), (found.held_out, whole.held_out)):
        assert [example.reward for example in mine] == [example.reward for example in theirs]
        assert all(np.array_equal(a.prelogits, b.prelogits) for a, b in zip(mine, theirs, strict=True))
    assert (found.num_bytes, found.num_skipped) == (whole.num_bytes, whole.num_skipped)
    assert found.total("num_generated_tokens") == whole.total("num_generated_tokens")
    other = Parts(tmp_path / "value.safetensors", {"seed": 1})
    assert take_kept(other, prompts(12), settings, Collected()) == prompts(12)
    parts.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_is_held_out_by_its_name():
    settings = ValueTraining(held_out=0.25)
    sides = [is_held_out(f"demo/tuning/{i:08d}", settings) for i in range(2000)]
    assert 0.2 < np.mean(sides) < 0.3


def test_too_much_data_is_an_error_in_time():
    with pytest.raises(ValueError, match="memory_gb"):
        collected(memory_gb=1e-7)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("epoch=3", "Did you mean"),
        ("policy=nothing", "no such choice"),
        ("out=value.bin", "safetensors"),
        ("--out=x", "without dashes"),
        ("terminal=middle", "last or first_compat"),
        ("temperature=0", "samples=1"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_code_2(word, says, capsys):
    assert main([word]) == 2
    assert says in capsys.readouterr().err


def test_keys_of_the_parts_reach_them():
    plan = make_plan(["policy.max_new_tokens=7", "epochs=2", "out=/tmp/a.safetensors"])
    assert plan.policy.max_new_tokens == 7
    assert plan.settings.epochs == 2


@pytest.mark.slow
def test_the_demo_policy_gets_a_value_function_that_predicts_and_steers(tmp_path):
    from aisp_ray.controls.value import ValueFunction

    path = tmp_path / "value.safetensors"
    assert main(["local=true", "limit=24", "epochs=8", "samples=4", f"out={path}"]) == 0
    _, facts = ValueFunction.load(path)
    assert facts["cost"]["num_samples"] == 96
    assert max(point["held_out_correlation"] for point in facts["curve"]) > 0.2
