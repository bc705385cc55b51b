"""Every YAML of conf/reward, loaded by the real code from small models in the published layout of the named one."""

import dataclasses
import math

import pytest
import torch
from small_models import RESPONSES, ask
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaModel, MistralModel

from aisp_ray import config
from aisp_ray.rewards._neural import NeuralReward
from aisp_ray.rewards.base import RewardSpec, ScoreRequest
from aisp_ray.types import Message, Prompt

LAYOUTS = {  # the model that a YAML names -> the small one in its layout
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": "qwen3",
    "Skywork/Skywork-Reward-V2-Llama-3.1-8B": "llama3",
    "allenai/Llama-3.1-Tulu-3-8B-RM": "llama3",
    "sfairXC/FsfairX-LLaMA3-RM-v0.1": "llama3",
    "OpenAssistant/reward-model-deberta-v3-large-v2": "deberta",
    "openbmb/UltraRM-13b": "ultrarm",
    "openbmb/Eurus-RM-7b": "eurus",
    "build/real/reward": "qwen3",  # assembled by make real; tests/test_real_models.py holds their own layout
    "build/real/judge": "qwen3",
    "demo:reward": "llama3",
    "demo:judge": "llama3",
}
TEXTS = {  # what the model reads for one question and the answer "No."
    "skywork_v2_qwen3_0_6b": "<|start|>user\nIs it?<|eot|>\n<|start|>assistant\nNo.<|eot|>\n",
    "skywork_v2_llama_8b": "<|begin|><|start|>user<|mid|>\n\nIs it?<|eot|><|start|>assistant<|mid|>\n\nNo.<|eot|>",
    "ultrarm_13b": "<s>Human: Is it?\n\nAssistant: No.",
    "ultrarm_13b_recontrol": "<s>Human: Is it?\nAssistant: No.",
    "ultrarm_13b_reward_bench": "<s>User: Is it?\n\nAssistant: No.\n\n</s>",
    "eurus_7b": "<s>[INST] Is it? [/INST] No.",
    "deberta": "[CLS]Is it?[SEP]No.[SEP]",
}


def build(name):
    values = config.read_choice("reward", name)
    values.pop("_judges_", None)
    if values["_target_"].endswith("CallableReward"):
        values["target"] = "test_published_layouts:count_words"
    if values["_target_"].endswith("EndpointReward"):
        values["model"] = "served"
    return config.build(values, f"reward.{name}")


def count_words(prompt, responses):
    return [len(response.split()) for response in responses]


NAMES = sorted(config.choices("reward"))
NEURAL = [name for name in NAMES if isinstance(build(name), NeuralReward)]


@pytest.mark.parametrize("name", NAMES)
def test_every_yaml_is_a_reward_model(name):
    spec = build(name)
    assert isinstance(spec, RewardSpec)
    if not isinstance(spec, NeuralReward) or spec.model.startswith("demo:"):  # others are looked up on the hub
        assert all(isinstance(problem, str) for problem in spec.check())


def reference(folder, ids):
    """The score of one sequence, read alone and without padding by transformers itself."""
    ids = torch.tensor([ids])
    if folder.name.startswith(("ultrarm", "eurus")):
        ultrarm = folder.name.startswith("ultrarm")
        body = LlamaModel if ultrarm else MistralModel
        if ultrarm:
            weights = {}
            for shard in folder.glob("*.bin"):
                weights |= torch.load(shard)
        else:
            from safetensors.torch import load_file

            weights = load_file(folder / "model.safetensors")
        model = body(body.config_class.from_pretrained(folder)).eval()
        model.load_state_dict({n.removeprefix("model."): t for n, t in weights.items() if n.startswith("model.")})
        hidden = model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        return float(hidden @ weights["regression_head.weight"][0])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if folder.name.startswith("llama3"):  # pads with its end of turn, so its own forward would read before that
        return float(model.score(model.model(input_ids=ids).last_hidden_state[0, -1]))
    return float(model(input_ids=ids).logits[0, 0])


@pytest.mark.parametrize("name", NEURAL)
@torch.no_grad()
def test_scores_are_those_of_transformers_on_the_exact_text(name, request):
    spec = build(name)
    folder = request.getfixturevalue(LAYOUTS[spec.model])
    spec = dataclasses.replace(spec, model=str(folder))
    scorer = spec.load("cpu")
    prompt = ask("Is it?")
    scores = scorer.score([ScoreRequest(prompt, ("No.", *RESPONSES))])[0]
    assert all(map(math.isfinite, scores.rewards))
    assert scores.errors == (None,) * 6
    assert max(scores.rewards) - min(scores.rewards) > 0.01
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = scorer.describe(prompt)
    if name in TEXTS:
        assert text.replace("<response>", "No.") == TEXTS[name]
    ids = tokenizer(text.replace("<response>", RESPONSES[1]), add_special_tokens=False)["input_ids"]
    assert scores.rewards[2] == pytest.approx(reference(folder, ids), abs=2e-5)
    assert scorer.reader.packed is not None or name == "deberta"


def test_code_of_a_checkpoint_does_not_run(eurus):
    """The small Eurus brings a module along that raises when it is imported."""
    spec = dataclasses.replace(build("eurus_7b"), model=str(eurus))
    assert spec.load("cpu").score([ScoreRequest(ask(), RESPONSES)])[0].errors == (None,) * 5


@pytest.mark.parametrize("name", ["ultrarm_13b", "ultrarm_13b_recontrol", "ultrarm_13b_reward_bench"])
def test_ultrarm_templates_give_three_texts_for_a_dialogue(name, ultrarm):
    scorer = dataclasses.replace(build(name), model=str(ultrarm)).load("cpu")
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    expected = {
        "ultrarm_13b": "<s>Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: <response>",
        "ultrarm_13b_recontrol": "<s>Human: a\nAssistant: b\nHuman: c\nAssistant: <response>",
        "ultrarm_13b_reward_bench": "<s>User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: <response>\n\n</s>",
    }
    assert scorer.describe(Prompt("p", 0, "d", "c", turns)) == expected[name]


def test_a_language_model_is_no_reward_model(tmp_path, llama3):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig.from_pretrained(llama3)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="random weights"):
        dataclasses.replace(build("demo"), model=str(tmp_path)).load("cpu")
    with pytest.raises(ValueError, match=r"regression_head\.weight"):
        dataclasses.replace(build("ultrarm_13b"), model=str(tmp_path)).load("cpu")
