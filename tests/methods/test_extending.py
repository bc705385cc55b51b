"""The complete method that docs/extending.md shows is run exactly as it stands there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml
from toy_world import ToyPolicy, drive

from aisp_ray import config

PAGE = (Path(__file__).parent.parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL).group(1)


@pytest.fixture
def method(tmp_path, monkeypatch):
    (tmp_path / "good_enough.py").write_text(block("python"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return config.build(yaml.safe_load(block("yaml")), "method.good_enough")


def reward(ids):
    return float(sum(ids)) / 4


def test_it_is_shorter_than_40_lines_of_code():
    lines = [line for line in block("python").splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) < 40


def test_it_stops_at_the_first_response_that_is_good_enough(method):
    state, history = drive(method, ToyPolicy(), reward)
    assert state.best.reward >= method.threshold
    assert all(max(scores.rewards) < method.threshold for _, _, scores, _ in history[:-1])
    assert history[-1][3] == {"found": 1.0}


def test_its_keys_and_their_meaning_are_found(method):
    assert config.comments(type(method))["threshold"] == "reward at which the search ends"
    with pytest.raises(config.ConfigError, match="Did you mean"):
        config.build({**yaml.safe_load(block("yaml")), "treshold": 1.0}, "method.good_enough")


def test_the_page_names_what_exists():
    from aisp_ray.types import Proposal

    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows
    assert set(rows) <= set(Proposal.__dataclass_fields__)
