"""Damaged checkpoints and the libraries' exceptions: one sentence each, that names the file and what mends it."""

import json
import pickle
import shutil
import struct

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from aisp_ray.cluster.failures import sort_load_error
from aisp_ray.engine.factory import build_engine
from aisp_ray.errors import LoadError
from aisp_ray.lm.checkpoints import damage, dtype_for, loading, reason
from aisp_ray.policy.causal_lm import CausalLM, resolve
from aisp_ray.rewards.regression_head import RegressionHead
from aisp_ray.rewards.sequence_classifier import SequenceClassifier

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"


@pytest.fixture
def folder(tmp_path):
    for file in resolve("demo:policy").iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def test_a_whole_checkpoint_has_no_damage(folder):
    assert damage(folder) is None
    save_file({"empty": torch.zeros(0), "whole": torch.ones(3, 2)}, folder / "more.safetensors", {"format": "pt"})
    assert damage(folder) is None
    assert damage("owner/name") is None


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "adapter_model.bin", "small.gguf"])
def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_it(folder, name):
    (folder / name).write_bytes(POINTER)
    text = damage(folder)
    assert f"{folder / name} is a Git-LFS pointer" in text
    assert "git lfs pull" in text
    (said,) = CausalLM(model=str(folder)).check()
    assert said == f"policy.model={folder}: {text}"
    assert SequenceClassifier(model=str(folder)).check() == [f"reward.model={folder}: {text}"]


@pytest.mark.parametrize("left", [0, 4, 8, 100, 3000, -1])
def test_a_torn_safetensors_file_is_named(folder, left):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:left])
    text = damage(folder)
    assert text.startswith(f"{weights} is ")
    assert "again" in text
    assert "\n" not in text
    with pytest.raises(ValueError, match=r"cannot be loaded on .*model\.safetensors is ") as caught:
        CausalLM(model=str(folder)).load("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", [b"[]", b"no JSON", json.dumps({"a": {"dtype": "F32"}}).encode(), b'{"a": 3}'])
def test_a_header_that_cannot_be_read_is_named(tmp_path, header):
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "its header cannot be read" in damage(file)


def test_more_bytes_than_the_header_says_are_damage_too(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert "its header says" in damage(folder)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            RuntimeError("Error(s) in loading state_dict for PeftModel:\n\tsize mismatch for q.lora_A: 2 against 4."),
            "Error(s) in loading state_dict for PeftModel: size mismatch for q.lora_A: 2 against 4.",
        ),
        (
            RuntimeError("Error(s) in loading state_dict for X:\n\tMissing key a.\n\tMissing key b.\n\tMissing key c."),
            "Error(s) in loading state_dict for X: Missing key a. (and 2 lines more)",
        ),
        (
            ValueError("The repository x contains custom code.\nPlease pass `trust_remote_code=True` to allow it."),
            "it brings its own Python code; reward.trust_remote_code=true runs that",
        ),
        (
            ValueError("The checkpoint has model type `nolm` but Transformers does not recognize this.\n\nUpdate."),
            "transformers does not know its architecture, nolm; a newer transformers may",
        ),
        (KeyError("nolm"), "KeyError: 'nolm'"),
        (AttributeError("'X' object has no attribute 'y'"), "AttributeError: 'X' object has no attribute 'y'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_line_that_says_what_is_kept(error, wanted):
    assert reason(error, "reward") == wanted


def test_without_a_group_the_key_stands_alone():
    error = ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")
    assert reason(error, "") == "it brings its own Python code; trust_remote_code=true runs that"


def _drop(folder, name):
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(key for key in tensors if name in key)]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _set(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize("name", ["layers.0.mlp.up_proj", "norm.weight"])
def test_a_checkpoint_that_lacks_tensors_is_no_policy(folder, name):
    _drop(folder, name)
    with pytest.raises(ValueError, match=rf"policy\.model=.* it lacks \S*{name}\S*: .*random weights"):
        CausalLM(model=str(folder)).load("cpu")


@pytest.mark.parametrize("spec", [CausalLM, SequenceClassifier, RegressionHead])
def test_tensors_of_other_shapes_are_named_with_both(folder, spec):
    _set(folder, intermediate_size=7)
    with pytest.raises(
        ValueError, match=r"model=.* cannot be loaded on .*(has the shape \d+ x \d+ and by|it lacks)"
    ) as e:
        spec(model=str(folder)).load("cpu")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("spec", [SequenceClassifier, RegressionHead])
@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (lambda at: (at / "model.safetensors").write_bytes(POINTER), "git lfs pull"),
        (lambda at: (at / "model.safetensors").write_bytes(b"torn"), "copy or download it again"),
        (lambda at: (at / "config.json").write_text("{nope"), "not a valid JSON"),
        (lambda at: _set(at, model_type="nolm"), "nolm"),
        (lambda at: [file.unlink() for file in at.glob("tok*")], "holds no tokenizer"),
    ],
)
def test_a_reward_model_that_does_not_load_is_one_sentence_too(folder, spec, damaged, said):
    damaged(folder)
    with pytest.raises(ValueError, match=rf"^model={folder} cannot be loaded on .*{said}") as caught:
        spec(model=str(folder)).load("cpu")
    assert "\n" not in str(caught.value)
    assert sort_load_error(caught.value).text == str(caught.value)
    assert sort_load_error(caught.value).kind == "settings"


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_a_model_without_a_cache_to_decode_from_is_refused_at_load(folder, engine):
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=64)
    with pytest.raises(ValueError, match=r"^MambaForCausalLM cannot be decoded here: .*choose a model") as caught:
        build_engine(transformers.AutoModelForCausalLM.from_config(config), engine)
    assert "\n" not in str(caught.value)


def test_a_long_text_is_cut():
    assert len(reason(ValueError("x" * 5000))) < 500


def test_the_dtype_is_chosen_by_the_device():
    assert (dtype_for("auto", "cpu"), dtype_for("auto", "cuda")) == ("float32", "bfloat16")
    assert dtype_for("float16", "cpu") == "float16"
    assert CausalLM(model="demo:policy").pinned().dtype == "float32"
    assert CausalLM(model="demo:policy", num_gpus=1).pinned().dtype == "bfloat16"
    assert CausalLM(model="demo:policy").load("cpu").engine.fingerprint["dtype"] == "torch.float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_type_on_a_cpu_runs_in_float32_and_says_so(dtype):
    spec = CausalLM(model="demo:policy", dtype=dtype)
    assert spec.pinned().dtype == "float32"
    assert f"in float32 (policy.dtype={dtype}: on a CPU float32 is faster) on the CPU" in spec.announcement()
    assert spec.load("cpu").engine.fingerprint["dtype"] == "torch.float32"
    assert CausalLM(model="demo:policy", dtype=dtype, num_gpus=1).pinned().dtype == dtype
    plain = CausalLM(model="demo:policy", dtype=dtype, engine="plain")
    assert plain.pinned().dtype == dtype
    assert "policy.dtype=" not in plain.announcement()


def _save_adapter(kind, base, place):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.get_peft_model(model, kind(peft)).save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"])
def test_an_adapter_that_cannot_be_merged_is_one_sentence(folder, tmp_path_factory, kind):
    settings = {
        "PROMPT_TUNING": lambda peft: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "PREFIX_TUNING": lambda peft: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "P_TUNING": lambda peft: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8
        ),
    }
    adapter = _save_adapter(settings[kind], folder, tmp_path_factory.mktemp("adapter"))
    with pytest.raises(ValueError, match=rf"policy\.adapter={adapter} cannot be loaded on .*{kind} adapter") as caught:
        CausalLM(model=str(folder), adapter=adapter).load("cpu")
    assert "cannot be merged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_names_the_adapter_and_the_tensor(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapter")
    _save_adapter(lambda peft: peft.LoraConfig(r=2, target_modules=["q_proj"]), folder, place)
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    with pytest.raises((ValueError, RuntimeError), match=r"policy\.adapter=.*size mismatch for \S+") as caught:
        CausalLM(model=str(folder), adapter=str(place)).load("cpu")
    assert "\n" not in str(caught.value)


def test_a_damaged_adapter_is_named(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapter")
    _save_adapter(lambda peft: peft.LoraConfig(r=2, target_modules=["q_proj"]), folder, place)
    (place / "adapter_model.safetensors").write_bytes(POINTER)
    (said,) = CausalLM(model=str(folder), adapter=str(place)).check()
    assert said.startswith(f"policy.adapter={place}: ")
    assert "git lfs pull" in said


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            RuntimeError("Error(s) in loading state_dict for PeftModel:\n\tsize mismatch for q: 2 against 4."),
            ValueError,
        ),
        (pickle.UnpicklingError("invalid load key"), ValueError),
        (AssertionError("heads"), ValueError),
        (RuntimeError("CUDA out of memory"), LoadError),
        (MemoryError(), LoadError),
    ],
)
def test_weights_that_do_not_fit_are_loaded_once(tmp_path, error, kind):
    with pytest.raises((ValueError, LoadError)) as caught, loading("policy.adapter", "mine", str(tmp_path)):
        raise error
    assert type(caught.value) is kind
    assert str(caught.value).startswith("policy.adapter=mine cannot be loaded on")
