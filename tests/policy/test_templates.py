"""Golden texts: what a policy reads for real-looking prompts, letter by letter."""

import pytest

from aisp_ray.data.hh_rlhf import HhRlhf
from aisp_ray.data.prompts import Prompts
from aisp_ray.data.shp import Shp
from aisp_ray.policy.templates import find_template, fold_system, merge_turns
from aisp_ray.types import Message, Prompt

POST = "Why do cats knead? My cat does it\n\nevery evening – ça va?"
HH_ROW = {
    "chosen": '\n\nHuman: Is "Human: yes" a line?\n\nAssistant: It is.\n\nHuman: Whose, then? 🙂\n\nAssistant: Shaw.'
}


def prompt(parsed, dataset="set"):
    assert parsed.error is None
    return Prompt("set/test/00000000", 0, dataset, parsed.text, parsed.messages)


SHP = prompt(Shp(path="x").parse({"history": POST}))
HH = prompt(HhRlhf(path="x").parse(HH_ROW))
HH_ONE = prompt(HhRlhf(path="x").parse({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello"}))
HH_EMPTY = prompt(HhRlhf(path="x").parse({"chosen": "\n\nHuman: Hi\n\nAssistant: \n\nHuman: Hello?\n\nAssistant: x"}))
CHAT = prompt(
    Prompts(path="x").parse(
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
    )
)


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("re_control_user", SHP, f"User: {POST}\nAssistant:"),
        ("re_control_human", SHP, f"Human: {POST}\nAssistant:"),
        (
            "re_control_user",
            HH,
            '\n\nUser:  Is "Human: yes" a line?\n\nAssistant: It is.\n\nUser:  Whose, then? 🙂\n\nAssistant:',
        ),
        (
            "re_control_human",
            HH,
            '\n\nHuman:  Is "Human: yes" a line?\n\nAssistant: It is.\n\nHuman:  Whose, then? 🙂\n\nAssistant:',
        ),
        ("re_control_user", HH_ONE, "\n\nUser:  Hi\n\nAssistant:"),
        ("re_control_user", HH_EMPTY, "\n\nUser:  Hi\n\nAssistant: \n\nUser:  Hello?\n\nAssistant:"),
        ("re_control_user", CHAT, "Be brief.\nUser: Hi\nAssistant:"),
        ("transcript", HH, HH.text),
        ("transcript", SHP, f"\n\nHuman: {POST}\n\nAssistant:"),
        ("transcript", CHAT, "Be brief.\n\nHuman: Hi\n\nAssistant:"),
        ("args", SHP, f" Human: {POST} Assistant: "),
        ("args", HH, HH.text),
        ("plain", SHP, POST),
        ("plain", HH, HH.text),
        ("### Question\n{prompt}\n### Answer\n", HH_ONE, "### Question\n\n\nHuman: Hi\n\nAssistant:\n### Answer\n"),
    ],
)
def test_a_fixed_text_is_exactly(name, given, text):
    assert find_template(name).write(given) == text


def test_vicunas_own_text_closes_each_reply():
    write = find_template("vicuna").write
    assert write(SHP).endswith(f"polite answers to the user's questions. USER: {POST} ASSISTANT:")
    assert write(CHAT) == "Be brief. USER: Hi ASSISTANT:"
    assert write(HH).endswith('USER: Is "Human: yes" a line? ASSISTANT: It is.</s>USER: Whose, then? 🙂 ASSISTANT:')


def test_braces_in_a_prompt_are_left_alone_by_a_text_of_ones_own():
    given = Prompt("s/t/0", 0, "s", "a {prompt} {x} {")
    assert find_template("Q: {prompt}\nA:").write(given) == "Q: a {prompt} {x} {\nA:"


def test_each_text_cuts_at_its_own_tag():
    assert find_template("re_control_user").stop_strings == ("User:",)
    assert find_template("re_control_human").stop_strings == ("Human:",)
    assert find_template("plain").stop_strings == ()
    assert find_template("chat") is None
    assert find_template("my/own.jinja") is None


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(ValueError, match='Did you mean "re_control_user"'):
        find_template("recontrol_user")


def test_neighbouring_turns_of_one_role_are_merged_and_a_system_turn_can_be_folded():
    turns = [Message("system", "s"), Message("user", "a"), Message("user", "b"), Message("assistant", "c")]
    merged = merge_turns(turns)
    assert [(turn.role, turn.content) for turn in merged] == [("system", "s"), ("user", "a\n\nb"), ("assistant", "c")]
    assert fold_system(merged)[0] == Message("user", "s\n\na\n\nb")
    assert fold_system(merged[1:]) == merged[1:]
