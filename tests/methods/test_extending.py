"""The complete methods that docs/extending.md shows are run exactly as they stand there."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import sys
from pathlib import Path

import pytest
import yaml
from toy_world import ToyPolicy, drive

from aisp_ray import config
from aisp_ray.methods.blockwise import Blockwise

PAGE = (Path(__file__).parent.parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")


NAMES = ("good_enough", "soft_blocks")


def block(language, name="good_enough"):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[NAMES.index(name)]


@pytest.fixture
def _modules(tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(block("python", name), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


@pytest.fixture
def method(_modules):
    return config.build(yaml.safe_load(block("yaml")), "method.good_enough")


@pytest.fixture
def soft(_modules):
    return config.build(yaml.safe_load(block("yaml", "soft_blocks")), "method.soft_blocks")


def reward(ids):
    return float(sum(ids)) / 4


@pytest.mark.parametrize("name", NAMES)
def test_it_is_shorter_than_40_lines_of_code(name):
    lines = [line for line in block("python", name).splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) < 40


def test_it_stops_at_the_first_response_that_is_good_enough(method):
    state, history = drive(method, ToyPolicy(), reward)
    assert state.best.reward >= method.threshold
    assert all(max(scores.rewards) < method.threshold for _, _, scores, _ in history[:-1])
    assert history[-1][3] == {"found": 1.0}


def test_the_method_over_blocks_continues_one_response_to_its_end(soft):
    soft = dataclasses.replace(soft, block=2, max_new_tokens=6)
    state, history = drive(soft, ToyPolicy(max_new_tokens=6, ends=False), reward)
    assert [proposal.max_new_tokens for proposal, *_ in history] == [2, 4, 6]
    for (_, before, _, _), (proposal, *_) in itertools.pairwise(history):
        (prefix,) = set(proposal.prefixes)
        assert prefix in {item.token_ids for item in before.items}
    assert state.best.reward == max(history[-1][2].rewards)


def test_the_method_over_blocks_with_a_small_beta_is_blockwise_best_of_n(soft):
    soft = dataclasses.replace(soft, block=2, max_new_tokens=6, beta=1e-9)
    state, _ = drive(soft, ToyPolicy(max_new_tokens=6), reward)
    greedy, _ = drive(Blockwise(n=8, block=2, max_new_tokens=6), ToyPolicy(max_new_tokens=6), reward)
    assert state.best == greedy.best


def test_its_keys_and_their_meaning_are_found(method):
    assert config.comments(type(method))["threshold"] == "reward at which the search ends"
    with pytest.raises(config.ConfigError, match="Did you mean"):
        config.build({**yaml.safe_load(block("yaml")), "treshold": 1.0}, "method.good_enough")


def test_the_page_names_what_exists():
    from aisp_ray.types import Proposal

    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows
    assert set(rows) <= set(Proposal.__dataclass_fields__)


def test_its_yaml_is_chosen_by_path_and_its_threshold_is_reached_on_the_demo(tmp_path, monkeypatch):
    from aisp_ray import best_responses

    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "good_enough", raising=False)
    (tmp_path / "good_enough.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "good_enough.yaml").write_text(block("yaml"), encoding="utf-8")
    (threshold,) = re.findall(r"method\.good_enough\.threshold=([\d.]+)", PAGE)
    (item,) = best_responses(
        "demo:policy",
        ["Could you help me brew the coffee? It tastes bitter."],
        "demo",
        method=str(tmp_path / "good_enough.yaml"),
        progress=False,
        threshold=float(threshold),
    )
    assert item.reward >= float(threshold)
    assert item.cost["num_samples"] < 256
    assert item.row["method"] == "good_enough"
