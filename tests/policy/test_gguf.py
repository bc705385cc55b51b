"""A GGUF file is a policy: the same tokens as its dequantised checkpoint, and one sentence where it cannot be read."""

import importlib.util
import sys

import pytest
import torch
from policy_helpers import PROMPTS, SAMPLED, STEERED, load, rollouts, settings
from transformers import AutoModelForCausalLM

from aisp_ray.lm import gguf as gguf_files
from aisp_ray.rewards.sequence_classifier import SequenceClassifier

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
from gguf import GGMLQuantizationType as Kind
from gguf_files import small_llama, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.Q8_0.gguf")


@pytest.fixture(scope="module")
def dense(file, tmp_path_factory):
    """The file's dequantised checkpoint."""
    policy = load(settings("hf", file))
    place = tmp_path_factory.mktemp("dense") / "checkpoint"
    policy.engine.model.save_pretrained(place)
    policy.tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize("engine", ["fast", "expanded", "plain"])
@pytest.mark.parametrize("proposal", [STEERED, SAMPLED], ids=["steered", "sampled"])
def test_a_gguf_policy_gives_the_tokens_of_its_dequantised_checkpoint(file, dense, engine, proposal):
    of_file, of_checkpoint = (load(settings("hf", model, engine=engine)) for model in (file, dense))
    for prompt in PROMPTS:
        ours, theirs = rollouts(of_file, prompt, proposal), rollouts(of_checkpoint, prompt, proposal)
        assert [item.token_ids for item in ours.items] == [item.token_ids for item in theirs.items]
        assert [item.text for item in ours.items] == [item.text for item in theirs.items]


@pytest.mark.parametrize(("kind", "most"), [(Kind.Q8_0, 0.02), (Kind.Q4_1, 0.2), (Kind.F16, 1e-3)])
def test_the_weights_are_those_that_were_quantised(tmp_path, kind, most):
    model = load(settings("hf", write_gguf(tmp_path / "small.gguf", kind))).engine.model
    original = dict(small_llama(model.config.vocab_size).named_parameters())
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, original[name], rtol=0, atol=most)


def test_a_folder_with_several_files_is_read_by_gguf_file(file, dense):
    spec = settings("hf", file.parent, gguf_file=file.name)
    assert spec.check() == []
    ours, theirs = rollouts(load(spec), PROMPTS[0], STEERED), rollouts(load(settings("hf", dense)), PROMPTS[0], STEERED)
    assert [item.token_ids for item in ours.items] == [item.token_ids for item in theirs.items]


def test_the_dequantised_model_is_an_ordinary_one(dense):
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    assert getattr(model.config, "quantization_config", None) is None
    assert not getattr(model, "is_quantized", False)


@pytest.mark.parametrize("gone", ["gguf", "accelerate"])
def test_a_missing_package_is_one_sentence_that_names_the_extra(file, monkeypatch, gone):
    find = importlib.util.find_spec
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: None if name == gone else find(name))
    for problem in (settings("hf", file).check(), SequenceClassifier(model=str(file)).check("judges.small")):
        (text,) = problem
        assert f"needs the package {gone}: pip install 'aisp-ray[gguf]'" in text
        assert "\n" not in text
    assert "gguf" in sys.modules


def test_files_that_are_none_are_named_before_loading(file, tmp_path):
    (nowhere,) = settings("hf", tmp_path / "nowhere.gguf").check()
    assert "no such file" in nowhere
    assert "policy.gguf_file" in nowhere
    (tmp_path / "wrong.gguf").write_bytes(b"not a GGUF file at all")
    (wrong,) = settings("hf", tmp_path / "wrong.gguf").check()
    assert "does not begin with the letters GGUF" in wrong
    (twice,) = settings("hf", file, gguf_file=file.name).check()
    assert "remove one of the two" in twice
    (other,) = settings("hf", tmp_path, gguf_file="model.bin").check()[:1]
    assert "ends in .gguf" in other


def test_a_gguf_language_model_is_no_reward_model(file):
    spec = SequenceClassifier(model=str(file))
    assert spec.check() == []
    with pytest.raises(ValueError, match=r"lacks score\.weight: it is no sequence classifier"):
        spec.load("cpu")
