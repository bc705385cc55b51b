"""Responses that grow are read on from where they were: equal scores, equal bits, fewer tokens."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from small_models import ask, write_llama3_classifier
from test_shared_prefix import SHARING, difference, group, make

from aisp_ray.rewards._stems import BLOCK, REST, Stem, stem_of
from aisp_ray.rewards._tokens import TokenRow
from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.sequence_classifier import SequenceClassifier

K = 5


def growing(seed: int, prompt: int, steps: int, start: int | None = None) -> list:
    """Groups as ARGS asks for them: K continuations of a text that grows by one of them."""
    rng = random.Random(seed)
    head = tuple(rng.choices(range(1, 200), k=prompt))
    start = prompt if start is None else start
    text, groups = head[:start], []
    for _ in range(steps):
        new = rng.sample(range(1, 200), K)
        groups.append((head, sorted((TokenRow((*text, token), start) for token in new), key=lambda row: row.ids)))
        text += (new[0],)
    return groups


def test_a_stem_is_the_common_beginning_in_whole_blocks():
    head, text = (1, 2, 3), tuple(range(10, 10 + 2 * BLOCK))
    rows = [TokenRow((*head, *text, 7, last), 3) for last in (50, 51, 52)]
    assert stem_of(rows) == Stem((*head, *text), 3)
    assert stem_of(rows[::-1]) == stem_of(rows)
    assert list(stem_of(rows).sizes()) == [3 + 2 * BLOCK, 3 + BLOCK]
    # a row that ends where the others go on keeps a last token
    assert stem_of([*rows, TokenRow((*head, *text), 3)]) == Stem((*head, *text[:BLOCK]), 3)


@pytest.mark.parametrize(
    "rows",
    [
        [TokenRow((1, 2, *range(10, 30)), 2)],  # one row has no others to share with
        [TokenRow((1, 2, *range(10, 30), last), 2, truncated=True) for last in (5, 6)],
        [
            TokenRow((1, 2, *range(10, 30), last), last - 4) for last in (5, 6)
        ],  # of the prompt they share different parts
        [TokenRow((1, 2, *range(10, 30), last), 0) for last in (5, 6)],  # nothing of the prompt
        [TokenRow((1, 2, *range(10, 10 + BLOCK - 1), last), 2) for last in (5, 6)],  # not yet a block
        [TokenRow((1, 2, *range(10, 30), *[last] * (REST + 1)), 2) for last in (5, 6)],  # samples that began alike
    ],
)
def test_what_is_no_growing_text_has_no_stem(rows):
    assert stem_of(rows) is None


@pytest.mark.parametrize("name", SHARING)
def test_scores_of_a_growing_text_are_the_padded_ones(name):
    reader = make(SHARING[name])
    assert reader.reads_on
    for one in growing(1, 12, 3 * BLOCK + 2):
        apart, spread = difference(reader, [one])
        assert apart < 1e-5 * max(1.0, spread)
        assert spread > 1e-3


def test_a_step_reads_few_tokens_of_a_long_text_and_keeps_little():
    steps, prompt = 40, 12
    on, off = make(SHARING["llama"]), make(SHARING["llama"], read_on=False)
    before = on.stats()["tokens_read"], off.stats()["tokens_read"]
    for at, one in enumerate(growing(2, prompt, steps)):
        had = on.packed.tokens_read
        assert on.read([one])[0][0] == pytest.approx(off.read([one])[0][0], abs=1e-5)
        assert on.packed.tokens_read - had <= BLOCK + K * BLOCK + (prompt if at == 0 else 0)
        token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
        assert on.packed.store.num_bytes <= token * (2 * (prompt + at) + prompt)  # the prompt, two texts
    read = on.stats()["tokens_read"] - before[0], off.stats()["tokens_read"] - before[1]
    assert read[1] == prompt + K * steps * (steps + 1) / 2
    assert read[0] < 0.2 * read[1]


def test_no_bit_depends_on_what_was_kept():
    """A lost actor, another search in between, a text that goes back: the same rewards."""
    one, other = growing(3, 12, 20), growing(4, 12, 20)
    fresh = [make(SHARING["llama"]).read([group])[0] for group in one]
    reader = make(SHARING["llama"])
    assert [reader.read([group])[0] for group in one] == fresh
    assert [reader.read([group])[0] for group in one[::-1]] == fresh[::-1]
    mixed = make(SHARING["llama"])
    found = []
    for mine, theirs in zip(one, other, strict=True):
        found.append(mixed.read([mine])[0])
        mixed.read([theirs])
    assert found == fresh
    small = make(SHARING["llama"])
    small.packed.store.limit_bytes = 40 * 2 * 2 * 2 * 8 * 4  # no room for all that a search keeps
    assert [small.read([group])[0] for group in one] == fresh
    assert small.packed.store.num_bytes <= small.packed.store.limit_bytes


def test_samples_are_read_as_without_it():
    groups = [group(5, 30, (20, 20, 11, 8, 8, 1)), group(6, 3, (50, 2))]
    assert make(SHARING["llama"]).read(groups) == make(SHARING["llama"], read_on=False).read(groups)


def test_a_text_that_continues_part_of_the_prompts_tokens_and_small_batches():
    for settings in ({}, {"batch_tokens": 3}, {"across_prompts": True}):
        reader = make(SHARING["llama"], **settings)
        for one in growing(7, 12, 11, start=9):
            assert difference(reader, [one, group(8, 9, (4, 4))])[0] < 1e-4


def test_a_growing_text_crosses_a_window():
    reader = make(SHARING["mistral, window"])
    for one in growing(9, 12, 20):
        assert difference(reader, [one])[0] < 1e-4


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    folder = str(write_llama3_classifier(tmp_path_factory.mktemp("read_on")))
    return [SequenceClassifier(model=folder, read_on=on).load("cpu") for on in (None, False)]


def test_a_text_that_is_cut_into_other_tokens_as_it_grows_has_the_general_paths_scores(scorers):
    """Letter by letter the last tokens keep changing; what is common is looked for anew each time."""
    on, off = scorers
    text = "Heat the water for six minutes, then take the egg out of the water and cool it."
    before = [one.stats()["tokens_read"] for one in scorers]
    for at in range(len(text)):
        request = ScoreRequest(ask(), tuple(text[:at] + more for more in ("", "e", " the", "colour", ".")))
        found, expected = on.score([request])[0], off.score([request])[0]
        assert found.rewards == pytest.approx(expected.rewards, abs=1e-5)
        assert found.errors == expected.errors
    read = [one.stats()["tokens_read"] - earlier for one, earlier in zip(scorers, before, strict=True)]
    assert read[0] < 0.6 * read[1]


def test_args_finds_the_same_response_with_and_without():
    from aisp_ray.cluster.local import LocalPolicy, LocalReward
    from aisp_ray.config import build, read_choice
    from aisp_ray.driver import search
    from aisp_ray.ledger import Task
    from aisp_ray.methods.args import Args

    policy = LocalPolicy(build(read_choice("policy", "demo"), "policy"))
    found, tokens = [], []
    for on in (True, False):
        reward = LocalReward(SequenceClassifier(model="demo:reward", dtype="float32", read_on=on))
        progress = asyncio.run(search(Task(ask(), "args", Args(k=4, max_new_tokens=24)), policy, reward, seed=0))
        tokens.append(reward.worker.stats()["tokens_read"])
        found.append(progress)
    one, two = found
    assert one.state.tokens == two.state.tokens
    assert len(one.state.tokens) > 12
    assert one.state.best.reward == pytest.approx(two.state.best.reward, abs=1e-5)
    assert one.trace.num_reward_calls == two.trace.num_reward_calls  # a reward call is one, however little it reads
    assert tokens[0] < 0.5 * tokens[1]


@pytest.mark.parametrize("settings", [{"shared_prefix": False}, {"prefix_mb": 0}])
def test_reading_on_needs_something_kept(settings):
    with pytest.raises(ValueError, match="read_on=true needs shared_prefix=true"):
        SequenceClassifier(model="small", read_on=True, **settings)


def test_asked_for_where_the_model_cannot_it_is_an_error_and_else_it_is_off(deberta):
    from test_shared_prefix import NOT_SHARING

    dynamic = NOT_SHARING["rotary frequencies of the whole batch"]
    with pytest.raises(ValueError, match=r"read_on=true is not possible.*dynamic rope"):
        make(dynamic, read_on=True)
    with pytest.raises(ValueError, match="needs a decoder"):
        SequenceClassifier(model=str(deberta), template="pair", read_on=True).load("cpu")
    assert make(dynamic).packed is None
    assert not make(SHARING["llama"], prefix_mb=0).reads_on


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reads_on_with_the_scores_of_the_cpu():
    gpu, cpu = make(SHARING["llama"], device="cuda"), make(SHARING["llama"])
    for one in growing(1, 12, 3 * BLOCK):
        assert gpu.read([one])[0][0] == pytest.approx(cpu.read([one])[0][0], abs=1e-3)
