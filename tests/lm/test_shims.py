"""Private parts of other libraries are used in one place, which names what a new release took away."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
import transformers

from aisp_ray.lm import shims

ROOT = Path(__file__).parent.parent.parent
PRIVATE = re.compile(r"ops\.aten\._|_attn_implementation|transformers\.cache_utils")


def test_only_the_shims_name_them():
    users = [path.name for path in (ROOT / "aisp_ray").rglob("*.py") if PRIVATE.search(path.read_text())]
    assert users == ["shims.py"]


@pytest.mark.parametrize("path", ["ops.aten._no_such_kernel", "nothing.at.all"])
def test_what_a_release_took_away_is_named_with_the_versions_that_were_tested(path):
    with pytest.raises(ImportError, match=rf"torch\.{re.escape(path)}.*tested with {shims.TESTED['torch']}"):
        shims.private("torch", path)


def test_a_model_that_keeps_its_attention_elsewhere_is_named():
    with pytest.raises(ImportError, match="_attn_implementation_internal"):
        shims.attention_configs(torch.nn.Linear(2, 2))


def test_the_bounds_of_the_package_are_the_tested_versions():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, tested in shims.TESTED.items():
        first, last = tested.split(" to ")
        major, minor = last.split(".")
        assert f"{name}>={first},<{major}.{int(minor) + 1}" in wanted
    for module in (torch, transformers):
        assert module.__version__.startswith(shims.TESTED[module.__name__].split(" to ")[1])


def test_a_models_attention_is_its_own_again_after_an_exception():
    config = transformers.LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=8)
    model = transformers.LlamaModel(config)
    configs = shims.attention_configs(model)
    own = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="eager"), shims.attention_named(configs, "eager"):
        raise RuntimeError(model.config._attn_implementation)
    assert model.config._attn_implementation == own
