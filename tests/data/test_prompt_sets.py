import json

import pytest

from aisp_ray.data.prompts import Prompts
from aisp_ray.types import Message

SET = Prompts(path="mine.jsonl")
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def test_a_text_is_one_user_turn_exactly_as_written():
    parsed = SET.parse({"prompt": "def f(x):\n    "})
    assert parsed.text == "def f(x):\n    "
    assert parsed.messages == (Message("user", "def f(x):\n    "),)


def test_messages_are_read_and_a_final_reply_is_cut_off():
    parsed = SET.parse({"messages": [*CHAT, {"role": "assistant", "content": "Hello"}]})
    assert parsed.messages == (Message("system", "Be brief."), Message("user", "Hi"))
    assert parsed.text == "Be brief.\n\nHuman: Hi\n\nAssistant:"
    assert parsed.rules == ("reply_cut",)


def test_other_spellings_of_messages_are_read():
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}, {"from": "human", "value": "Bye"}]
    assert [turn.role for turn in Prompts(column="turns").parse({"turns": shared}).messages] == [
        "user",
        "assistant",
        "user",
    ]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert SET.parse({"messages": parts}).messages == (Message("user", "Hi"),)


def test_messages_written_as_a_text_are_messages():
    for text in (json.dumps(CHAT), json.dumps(CHAT, indent=2), repr(CHAT)):
        for column in ("prompt", "messages"):
            assert SET.parse({column: text}).messages[1] == Message("user", "Hi")
    assert "looks like messages, but is not JSON" in SET.parse({"messages": json.dumps(CHAT)[:-3]}).error
    assert SET.parse({"prompt": '[{"a": 1}]'}).text == '[{"a": 1}]'


def test_the_cut_off_reply_may_call_tools():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    result = {"role": "tool", "content": "4"}
    silent = [[{"role": "assistant", "content": None}], [{"role": "assistant", "function_call": {"name": "f"}}]]
    for reply in ([call], [call, result], [call, result, {"role": "assistant", "content": "Four."}], *silent):
        parsed = SET.parse({"messages": [*CHAT, *reply]})
        assert parsed.messages == (Message("system", "Be brief."), Message("user", "Hi"))
        assert parsed.rules == ("reply_cut",)
    later = SET.parse({"messages": [*CHAT, call, result, {"role": "user", "content": "And?"}]})
    assert later.error == "message 3 holds null, not text"


def test_a_prompt_column_may_hold_messages():
    assert SET.parse({"prompt": CHAT}).messages[1] == Message("user", "Hi")


def test_a_text_of_turns_is_a_dialogue_unless_told_otherwise():
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant:"}
    parsed = SET.parse(row)
    assert [turn.content for turn in parsed.messages] == ["Hi", "Yes?", "Bye"]
    assert "dialogue" in parsed.rules
    assert len(Prompts(dialogues=False).parse(row).messages) == 1


def test_a_system_message_is_added_where_there_is_none():
    spec = Prompts(system="Answer in French.")
    assert spec.parse({"prompt": "Hi"}).messages[0] == Message("system", "Answer in French.")
    assert spec.parse({"messages": CHAT}).messages[0] == Message("system", "Be brief.")


def test_columns_are_kept_under_their_own_or_another_name():
    spec = Prompts(keep=("tests", "answer=solution", "absent"), id_column="uid")
    assert spec.parse({"prompt": "p", "tests": ["t"], "solution": 4, "uid": 7}).meta == {
        "tests": ["t"],
        "answer": 4,
        "id": 7,
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": 5}, "holds a number"),
        ({"prompt": None, "messages": None}, "holds null"),
        ({"text": "x"}, "no column 'prompt'; its columns are text"),
        ({}, "its columns are none"),
        ({"messages": []}, "there is no message"),
        ({"messages": ["hi"]}, "message 1 is str"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "message 1 holds a list"),
        ({"messages": [{"role": "user", "content": " "}]}, "does not end with a user turn"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "does not end with a user turn"),
        ({"messages": {"role": "user"}}, "holds a table"),
    ],
)
def test_rows_that_are_no_prompt_are_errors_that_say_why(row, reason):
    assert reason in SET.parse(row).error


def test_the_set_is_named_after_its_file():
    assert Prompts(path="/data/my_set.jsonl.gz").dataset == "my_set"
    assert Prompts(path="owner/some-set").dataset == "some-set"
    assert Prompts(path="s3://bucket/folder/").dataset == "folder"
    assert Prompts(path="x.csv", name="given").dataset == "given"


def test_settings_that_cannot_be_are_refused():
    for key, value in {"format": "xlsx", "max_prompt_tokens": 0, "sample": 0, "split": "a/b", "name": "a/b"}.items():
        with pytest.raises(ValueError, match=key):
            Prompts(**{key: value})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s3://KEY:SECRET@bucket", "bucket"),
        ("https://me:p@w@host/a/rows.jsonl", "rows"),
        ("https://h:80/x@y.csv", "x@y"),
    ],
)
def test_no_password_of_a_uri_becomes_the_name_of_the_set(path, name):
    assert Prompts(path=path).dataset == name
