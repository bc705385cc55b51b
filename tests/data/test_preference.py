import json

import pytest

from aisp_ray.data.preference import Preference
from aisp_ray.types import Message

PAIRS = Preference(path="x")


def turn(role, content):
    return {"role": role, "content": content}


def test_a_prompt_with_two_replies():
    parsed = PAIRS.parse({"prompt": "Which way?", "chosen": "Left.", "rejected": "Up."})
    assert parsed.messages == (Message("user", "Which way?"),)
    assert parsed.meta == {"preferred": "Left.", "rejected": "Up."}
    assert parsed.rules == ()


def test_messages_with_the_prompt_apart_or_repeated_in_the_replies():
    prompt = [turn("system", "Be brief."), turn("user", "Which way?")]
    for chosen in ([turn("assistant", "Left.")], [*prompt, turn("assistant", "Left.")]):
        parsed = PAIRS.parse({"prompt": prompt, "chosen": chosen})
        assert parsed.messages == (Message("system", "Be brief."), Message("user", "Which way?"))
        assert parsed.meta == {"preferred": "Left."}


def test_an_implicit_prompt_of_messages_is_what_comes_before_the_reply():
    both = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    parsed = PAIRS.parse({"chosen": [*both, turn("assistant", "d")], "rejected": [*both, turn("assistant", "e")]})
    assert [message.content for message in parsed.messages] == ["a", "b", "c"]
    assert parsed.meta == {"preferred": "d", "rejected": "e"}
    assert parsed.rules == ("implicit_prompt",)


def test_an_implicit_prompt_of_texts_is_their_common_beginning():
    parsed = PAIRS.parse({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert parsed.text == "The sky is"
    assert parsed.meta == {"preferred": "blue.", "rejected": "black."}
    dialogue = PAIRS.parse({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"})
    assert dialogue.messages == (Message("user", "a"),)
    assert dialogue.meta == {"preferred": "b", "rejected": "c"}


def test_prompts_alone_and_completions_are_read():
    assert PAIRS.parse({"prompt": "p"}).rules == ("no_reply",)
    assert PAIRS.parse({"prompt": "p", "completion": "c", "label": True}).meta == {"preferred": "c"}


@pytest.mark.parametrize("label", [False, 0, "false", "False", "0", 0.0, -1, "undesirable"])
def test_an_unwanted_completion_is_rejected(label):
    assert PAIRS.parse({"prompt": "p", "completion": "awful", "label": label}).meta == {"rejected": "awful"}


@pytest.mark.parametrize("label", [True, 1, "true", "1", 1.0, None])
def test_a_wanted_completion_is_preferred(label):
    assert PAIRS.parse({"prompt": "p", "completion": "fine", "label": label}).meta == {"preferred": "fine"}
    assert "'label' holds 'perhaps'" in PAIRS.parse({"prompt": "p", "completion": "c", "label": "perhaps"}).error


@pytest.mark.parametrize("write", [json.dumps, lambda value: json.dumps(value, indent=1), repr])
def test_messages_written_as_a_text_are_messages(write):
    prompt = [turn("system", 'Be "brief".'), turn("user", "Which\nway?")]
    chosen, rejected = [*prompt, turn("assistant", "Left.")], [*prompt, turn("assistant", "Up.")]
    for row in (
        {"chosen": chosen, "rejected": rejected},
        {"prompt": prompt, "chosen": chosen[2:], "rejected": rejected[2:]},
    ):
        parsed = PAIRS.parse({column: write(value) for column, value in row.items()})
        assert parsed == PAIRS.parse(row)
        assert parsed.meta == {"preferred": "Left.", "rejected": "Up."}


def test_texts_that_are_no_messages_stay_texts():
    for text in (
        "[1, 2, 3]",
        "{x: 1}",
        "[{]",
        '{"a": 1}',
        "[citation needed] [{",
        '[{"value": 3}]',
        '{"role": "x"} is JSON',
    ):
        assert PAIRS.parse({"prompt": text, "chosen": text}).text == text


def test_a_reply_of_calls_is_no_preferred_reply():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parsed = PAIRS.parse({"prompt": [turn("user", "a")], "chosen": [turn("user", "a"), call]})
    assert parsed.error is None
    assert parsed.meta == {}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "abc", "rejected": "xyz"}, "no beginning in common"),
        ({"prompt": 3, "chosen": "a"}, "'prompt' holds a number"),
        ({"prompt": " "}, "'prompt' is empty"),
        ({"prompt": [turn("user", "a"), turn("assistant", "b")], "chosen": "c"}, "ends with an assistant turn"),
        ({"prompt": [turn("user", 1)]}, "message 1 holds a number"),
        ({"chosen": [turn("assistant", "b")], "rejected": None}, "does not end with a user turn"),
        ({"other": 1}, "'chosen' holds null"),
        (
            {"prompt": "p", "chosen": '[{"role": "assistant", "content": "cut'},
            "'chosen' looks like messages, but is not JSON",
        ),
        ({"chosen": '[{"role": "user", "content": "a"}', "rejected": "b"}, "'chosen' looks like messages"),
        ({"prompt": '{"role": "user", "content": "a"}'}, "the messages are a table"),
    ],
)
def test_rows_that_are_no_pair_say_why(row, reason):
    assert reason in PAIRS.parse(row).error


def test_replies_apart_from_their_prompt_may_call_tools():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    result, said = {"role": "tool", "content": "18"}, turn("assistant", "18 degrees.")
    for chosen, preferred in (([call], None), ([call, result], None), ([call, result, said], "18 degrees.")):
        parsed = PAIRS.parse(
            {"prompt": [turn("user", "Warm?")], "chosen": chosen, "rejected": [turn("assistant", "No")]}
        )
        assert (parsed.error, parsed.text) == (None, "Warm?"), chosen
        assert (parsed.meta.get("preferred"), parsed.meta["rejected"]) == (preferred, "No"), chosen
    parsed = PAIRS.parse({"prompt": "Warm?", "chosen": [result, said]})
    assert parsed.error == "column 'chosen': message 1 has the role 'tool'"  # nothing has called it
    assert PAIRS.parse({"prompt": [call], "chosen": "Yes"}).error is not None
