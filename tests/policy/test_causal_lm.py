import json
from types import SimpleNamespace

import pytest
import torch
from policy_helpers import PROMPTS, STEERED, load, rollouts, settings
from tiny_checkpoints import LLAMA3_CHAT, make_checkpoint

from aisp_ray.cluster.failures import sort_load_error
from aisp_ray.engine.cpu import kernels
from aisp_ray.errors import DataError, LoadError
from aisp_ray.policy.causal_lm import CausalLM
from aisp_ray.types import Message, Prompt, Rollout, Rollouts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def base(folder):
    return make_checkpoint("llama3_8b", folder)


@pytest.fixture(scope="module")
def gemma(folder):
    return make_checkpoint("gemma3_4b", folder)


def asked(*turns):
    return Prompt("s/t/0", 0, "s", turns[-1].content, tuple(turns))


def test_a_base_model_without_a_chat_template_says_what_to_choose(base):
    with pytest.raises(ValueError, match=r"no chat template .*policy\.template=re_control_user"):
        load(settings("hf", base))


def test_a_chat_template_may_come_from_a_file(base, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(LLAMA3_CHAT)
    policy = load(settings("hf", base, template=str(path)))
    assert policy.describe(PROMPTS[0]).startswith("<|begin_of_text|><|start_header_id|>user")
    assert "no such file" in settings("hf", base, template="nowhere.jinja").check()[0]


def test_a_template_without_a_system_role_gets_it_with_the_first_turn(gemma):
    policy = load(settings("gemma3_4b", gemma, system="Be brief."))
    text = policy.describe(PROMPTS[0])
    assert text == "<bos><start_of_turn>user\nBe brief.\n\nWhy do cats knead?<end_of_turn>\n<start_of_turn>model\n"


def test_turns_that_a_chat_template_refuses_are_the_rows_error(gemma):
    policy = load(settings("gemma3_4b", gemma))
    with pytest.raises(DataError, match="roles assistant, user: roles must alternate"):
        policy.request(asked(Message("assistant", "a"), Message("user", "b")), STEERED, 0)
    merged = policy.describe(asked(Message("user", "a"), Message("user", "b")))
    assert merged.count("<start_of_turn>user") == 1


def test_a_prompt_longer_than_the_engine_holds_is_the_rows_error(base):
    policy = load(settings("llama3_8b", base, max_prompt_tokens=50))
    policy.engine = SimpleNamespace(longest_prompt=40)  # a GPU's tiles
    with pytest.raises(DataError, match=r"at most 40 fit \(policy\.max_prompt_tokens makes room"):
        policy.request(asked(Message("user", "word " * 45)), STEERED, 0)


def test_a_prompt_longer_than_any_of_three_limits_is_the_rows_error(base):
    long = asked(Message("user", "word " * 200))
    for more, prompt, most in (
        ({"max_new_tokens": 400}, long, r"112 fit \(policy\.max_new_tokens"),
        ({"max_prompt_tokens": 50}, long, r"50 fit \(policy\.max_prompt_tokens\)"),
        ({}, Prompt("s/t/0", 0, "s", "word " * 30, max_tokens=20), r"20 fit \(data\.max_prompt_tokens\)"),
    ):
        policy = load(settings("llama3_8b", base, **more))
        with pytest.raises(DataError, match=f"at most {most}"):
            policy.request(prompt, STEERED, 0)


def test_responses_that_leave_no_room_for_a_prompt_are_a_wrong_setting(base):
    with pytest.raises(ValueError, match=r"policy\.max_new_tokens is 512, .* at most 512 tokens"):
        load(settings("llama3_8b", base, max_new_tokens=512))


def test_the_chat_options_reach_the_template(folder):
    qwen = make_checkpoint("qwen3_8b", folder)
    assert load(settings("qwen3_8b", qwen)).describe(PROMPTS[0]).endswith("</think>\n\n")
    assert load(settings("qwen3_8b", qwen, chat_options={})).describe(PROMPTS[0]).endswith("<|im_start|>assistant\n")


def test_a_tokenizer_that_closes_every_text_does_not_close_a_prompt(base):
    policy = load(settings("llama3_8b", base))
    before = policy.renderer.ids(PROMPTS[0])
    inner = policy.tokenizer

    class Closing:
        """As add_eos_token=true does."""

        def __getattr__(self, name):
            return getattr(inner, name)

        def __call__(self, text, add_special_tokens=True):
            ids = inner(text, add_special_tokens=add_special_tokens)["input_ids"]
            return {"input_ids": [*ids, inner.eos_token_id] if add_special_tokens else ids}

    object.__setattr__(policy.renderer, "tokenizer", Closing())
    assert policy.renderer.ids(PROMPTS[0]) == before
    assert before[0] == inner.bos_token_id


def test_a_text_that_brings_its_beginning_gets_no_second_one(base):
    policy = load(settings("llama3_8b", base, template="<|begin_of_text|>Q: {prompt}\nA:"))
    ids = policy.renderer.ids(PROMPTS[0])
    assert ids.count(policy.tokenizer.bos_token_id) == 1


def text_of(policy, text, reason):
    """What a policy makes of a row whose tokens are the text's."""
    ids = tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
    return policy.finish(Rollouts(0, (Rollout(0, "", ids, reason, len(ids)),), 1)).items[0].text


@pytest.mark.parametrize(("least", "expected"), [(0, "Sure."), (7, "Sure."), (8, "Sure. User: and more.")])
def test_a_response_is_cut_at_the_first_stop_string_that_counts(base, least, expected):
    more = {"stop_strings": ["Human:", "User:"], "min_new_tokens": least, "max_new_tokens": 40}
    policy = load(settings("llama3_8b", base, **more))
    assert text_of(policy, "Sure. User: and more. Human: x User: y", "stop_string") == expected
    assert text_of(policy, "nothing to cut ", "length") == "nothing to cut"


def test_the_token_that_ended_a_response_is_not_in_its_text(base):
    policy = load(settings("llama3_8b", base, stop_tokens=["."]))
    assert text_of(policy, "It is what it is.", "stop") == "It is what it is"
    assert text_of(policy, "It is what it is.", "length") == "It is what it is."


def test_the_text_templates_cut_and_strip_what_the_engine_returns(base):
    policy = load(settings("llama3_8b", base))
    ids = policy.tokenizer(" They like it.\nUser: and dogs?", add_special_tokens=False)["input_ids"]
    drawn = rollouts(policy, PROMPTS[0], STEERED)
    from dataclasses import replace

    finished = policy.finish(replace(drawn, items=(replace(drawn.items[0], token_ids=tuple(ids)),)))
    assert finished.items[0].text == "They like it."
    own = load(settings("llama3_8b", base, stop_strings=["dogs"]))
    assert own.finish(replace(drawn, items=(replace(drawn.items[0], token_ids=tuple(ids)),))).items[0].text == (
        "They like it.\nUser: and"
    )


def test_further_stop_tokens_are_named_as_in_the_vocabulary(base):
    policy = load(settings("llama3_8b", base, stop_tokens=["<|end_header_id|>"]))
    ends = policy.request(PROMPTS[0], STEERED, 0).stop.token_ids
    assert policy.tokenizer.convert_tokens_to_ids("<|end_header_id|>") in ends
    with pytest.raises(ValueError, match=r'no token .*Did you mean "<\|eot_id\|>"'):
        load(settings("llama3_8b", base, stop_tokens=["<|eot|>"]))


def test_the_engines_own_kernels_can_be_left_out(base):
    policy = load(settings("llama3_8b", base, kernels=False))
    assert policy.engine.fingerprint["kernels"] == []
    own = load(settings("llama3_8b", base)).engine.fingerprint["kernels"]
    assert own == (["linear", "attention"] if kernels.usable() else [])


def test_weights_go_straight_to_the_gpu_and_not_through_the_hosts_memory(base, monkeypatch):
    seen = []

    def from_pretrained(source, **options):
        seen.append(options.get("device_map"))
        return SimpleNamespace(), {"missing_keys": [], "mismatched_keys": []}

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    monkeypatch.setattr("aisp_ray.lm.gguf.as_dense", lambda model: model)
    for num_gpus, device in ((0, "cpu"), (1, "cuda"), (0.5, "cuda"), (2, "cuda")):
        CausalLM(model=str(base), num_gpus=num_gpus)._load_model(str(base), device, {})
    CausalLM(model="some.gguf", num_gpus=1)._load_model("some.gguf", "cuda", {})
    assert seen == [None, {"": "cuda"}, {"": "cuda"}, "auto", None]


@pytest.mark.parametrize("wrong", [{"flash": True}, {"narrow": False}])
def test_what_is_for_a_gpu_is_refused_without_one_and_on_another_engine(base, wrong):
    for place in ({}, {"num_gpus": 1, "engine": "vllm"}, {"num_gpus": 1, "engine": "plain"}):
        with pytest.raises(ValueError, match="engine=fast on a GPU"):
            CausalLM(model=str(base), **place, **wrong)
    assert CausalLM(model=str(base), num_gpus=1, **wrong)


def test_an_adapter_is_merged_and_changes_the_responses(base, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    spec = settings("llama3_8b", base, adapter=str(tmp_path / "adapter"))
    assert spec.check() == []
    policy = load(spec)
    assert type(policy.engine).__name__ == "FastEngine"
    ids = torch.tensor([policy.renderer.ids(PROMPTS[0])])
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        torch.testing.assert_close(policy.engine.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids).logits
    assert not torch.allclose(expected, plain, atol=0.1)


def test_paths_that_hold_no_checkpoint_are_said_before_loading(base, tmp_path):
    for key in ("model", "adapter"):
        problem = settings("llama3_8b", base, **{key: str(tmp_path)}).check()[0]
        assert problem.startswith(f"policy.{key}={tmp_path}: there is no")
    assert settings("llama3_8b", base).check() == []
    assert settings("llama3_8b", base).pinned().revision is None


def test_a_hub_model_is_pinned_to_its_commit(monkeypatch):
    from aisp_ray.lm import hub

    monkeypatch.setattr(hub, "look_up", lambda name, *rest: f"commit of {name}")
    spec = CausalLM(model="owner/model", adapter="owner/adapter").pinned()
    assert (spec.revision, spec.adapter_revision) == ("commit of owner/model", "commit of owner/adapter")


def test_a_checkpoint_that_is_torn_is_one_sentence(base, tmp_path):
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(ValueError, match="cannot be loaded on") as caught:
        load(settings("llama3_8b", tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "cause", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), None, "load"),
        (MemoryError(), None, "load"),
        (OSError(5, "Input/output error"), None, "load"),
        (OSError("There was a specific connection error"), ConnectionError("no route"), "load"),
        (ValueError("Can't find 'adapter_config.json'"), ConnectionError("no route"), "load"),
        (OSError("it does not appear to have a file named model.safetensors"), None, "settings"),
        (KeyError("nolm"), None, "settings"),
        (ValueError("Unrecognized model"), None, "settings"),
        (ImportError("requires the sentencepiece library"), None, "settings"),
    ],
)
def test_only_what_no_machine_would_load_is_a_wrong_setting(base, monkeypatch, error, cause, kind):
    def fail(*_):
        raise error from cause

    monkeypatch.setattr(CausalLM, "_load_model", fail)
    with pytest.raises((ValueError, LoadError), match="cannot be loaded on") as caught:
        load(settings("llama3_8b", base))
    assert sort_load_error(caught.value).kind == kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dtype": "fp16"}, "auto, float32, bfloat16, float16"),
        ({"engine": "vlm"}, "auto, fast, expanded, plain, vllm"),
        ({"engine": "vllm", "kernels": False}, "no effect"),
        ({"template": "recontrol"}, "Did you mean"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"min_new_tokens": 200}, "0..max_new_tokens=128"),
        ({"template": "vicuna", "chat_options": {"a": 1}}, "no effect"),
        ({"template": "plain", "system": "x"}, "no effect"),
    ],
)
def test_settings_that_cannot_be_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        CausalLM(model="x", **more)


def test_settings_can_be_printed_as_json(base):
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(settings("llama3_8b", base))))["template"] == "re_control_user"
