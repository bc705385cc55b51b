"""What is refused before anything loads, and the kilobytes that a request carries. Runs without vLLM."""

import pickle

import pytest

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.engine import factory
from aisp_ray.engine.vllm import setup
from aisp_ray.policy.causal_lm import CausalLM
from tests.engine.tiny_models import request


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (None, ["not installed", "0.32", "0.33", "policy.engine=fast"]),
        ("0.31.2", ["0.31.2", "0.32", "0.33", "policy.engine=fast"]),
        ("0.33.0rc1", ["0.33.0rc1", "0.32"]),
        ("1.0", ["1.0", "0.32"]),
        ("of an unknown version", ["unknown version", "0.32"]),
    ],
)
def test_an_untested_vllm_is_refused_in_one_sentence(monkeypatch, version, words):
    monkeypatch.setattr(setup, "installed_version", lambda: version)
    problem = setup.problem()
    assert problem is not None
    assert all(word in problem for word in words)
    with pytest.raises(ValueError, match=r"policy\.engine=fast"):
        setup.make_engine(setup.VllmSettings("nowhere", "float32", 64))


@pytest.mark.parametrize("version", ["0.32.0", "0.32.7", "0.32.1.dev3"])
def test_a_tested_vllm_is_not(monkeypatch, version):
    monkeypatch.setattr(setup, "installed_version", lambda: version)
    assert setup.problem() is None


def test_a_request_of_many_iterations_is_kilobytes():
    entries = tuple(WeightEntry(k, (1 / 32,) * 32, (128,) * 32, 0.7) for k in range(32))
    asked = request(length=200, n=32, control=OpenLoop(horizon=128, mean=WeightLog(entries), sigma=0.7))
    assert len(pickle.dumps(asked)) < 64_000


@pytest.mark.parametrize(
    ("version", "more", "expected"),
    [
        ("0.32.0", {"num_gpus": 1}, "vllm"),
        ("0.32.0", {"num_gpus": 4}, "vllm"),
        ("0.32.0", {"num_gpus": 0}, "fast"),
        ("0.32.0", {"num_gpus": 1, "adapter": "some/adapter"}, "fast"),
        ("0.99.0", {"num_gpus": 1}, "fast"),
        (None, {"num_gpus": 1}, "fast"),
        ("0.32.0", {"num_gpus": 1, "engine": "plain"}, "plain"),
    ],
)
def test_auto_is_vllm_on_gpus_where_it_can_be(monkeypatch, version, more, expected):
    monkeypatch.setattr(setup, "installed_version", lambda: version)
    monkeypatch.setattr(CausalLM, "_commit", lambda *_: None)
    assert CausalLM(model="some/model", **more).pinned().engine == expected


def test_what_vllm_cannot_do_is_said_before_anything_loads(monkeypatch):
    monkeypatch.setattr(CausalLM, "_commit", lambda *_: None)
    monkeypatch.setattr(setup, "installed_version", lambda: "0.32.0")
    assert CausalLM(model="x", engine="vllm").check() == []
    (problem,) = CausalLM(model="x", engine="vllm", adapter="y").check()
    assert "policy.adapter" in problem
    assert "policy.engine=fast" in problem
    monkeypatch.setattr(setup, "installed_version", lambda: "0.31.0")
    (problem,) = CausalLM(model="x", engine="vllm").check()
    assert "0.31.0" in problem


def test_a_loaded_model_is_not_for_vllm(monkeypatch):
    with pytest.raises(ValueError, match="engine=fast"):
        CausalLM(model="x", engine="vllm").around(None, None)
    monkeypatch.setattr(setup, "installed_version", lambda: "0.32.0")
    asked = []
    monkeypatch.setattr(factory, "build_engine", lambda model, **settings: asked.append(settings["kind"]))
    with pytest.raises(AttributeError):  # there is no model
        CausalLM(model="x", num_gpus=1).around(None, None)
    assert asked == ["fast"]
