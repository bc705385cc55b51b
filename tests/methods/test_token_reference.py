"""The recipe for the third KL estimator that docs/methods.md shows is run exactly as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightLog
from aisp_ray.metrics import kl

PAGE = (Path(__file__).parent.parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
(RECIPE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def found():
    names: dict = {}
    exec(compile(RECIPE, "docs/methods.md", "exec"), names)
    return names


@torch.no_grad()
def by_hand(found, decay=1.0):
    """The sum over one response of KL(steered | base), a forward over the whole text at each position."""
    loaded, request, ids = found["loaded"], found["request"], found["drawn"][3]
    mean = found["state"].log.fold(loaded.engine.source(request), found["method"].horizon)
    total = 0.0
    for t in range(len(ids)):
        text = torch.tensor([[*request.prompt_ids, *ids[:t]]])
        z = loaded.engine.model.base_model(input_ids=text).last_hidden_state[0, -1]
        base, steered = (torch.log_softmax(loaded.engine.head(x), -1).double() for x in (z, z + decay**t * mean[t]))
        total += float((steered.exp() * (steered - base)).sum())
    return total


def test_it_is_the_kl_of_the_searchs_mean_on_the_base_policys_own_responses(found):
    assert len(found["token_reference"]) == 32
    assert found["token_reference"][3] == pytest.approx(by_hand(found), rel=1e-4)
    assert found["token_reference"][3] > 0.1
    state, engine = found["state"], found["loaded"].engine
    assert kl.token(engine.source(found["request"]), WeightLog(), 16, found["drawn"]) == [0.0] * 32
    # of the search's own noise: the mean whose norm the last round reported
    log = WeightLog(state.log.entries[:-1])
    norm = float(log.fold(engine.source(found["request"]), 16).norm())
    assert norm == pytest.approx(found["progress"].trace.control_norm[-1], rel=1e-5)


def test_a_mean_whose_noise_decays_is_scaled_before_the_head(found):
    source, control = found["loaded"].engine.source(found["request"]), OpenLoop(decay=0.9)
    mapped = kl.token(source, found["state"].log, 16, found["drawn"], control)
    assert mapped[3] == pytest.approx(by_hand(found, 0.9), rel=1e-4)
    assert mapped[3] != pytest.approx(found["token_reference"][3], rel=1e-2)
