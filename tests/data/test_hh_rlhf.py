from aisp_ray.data._transcript import read_turns, write_turns
from aisp_ray.data.hh_rlhf import HhRlhf
from aisp_ray.types import Message

HH = HhRlhf(path="unused.jsonl")


def dialogue(*turns):
    return "".join(f"\n\n{tag}: {text}" for tag, text in zip(("Human", "Assistant") * 9, turns, strict=False))


def roles(parsed):
    return [turn.role for turn in parsed.messages]


def test_the_last_assistant_turn_is_cut_off_and_kept_as_the_preferred_reply():
    row = {
        "chosen": dialogue("My tap drips. 😀", "Which one?", "The kitchen one", "Turn the valve off first."),
        "rejected": dialogue("My tap drips. 😀", "Which one?", "The kitchen one", "Dunno."),
    }
    parsed = HH.parse(row)
    assert parsed.text == "\n\nHuman: My tap drips. 😀\n\nAssistant: Which one?\n\nHuman: The kitchen one\n\nAssistant:"
    assert roles(parsed) == ["user", "assistant", "user"]
    assert parsed.messages[-1].content == "The kitchen one"
    assert parsed.meta == {"preferred": "Turn the valve off first.", "rejected": "Dunno."}
    assert parsed.rules == ()
    assert parsed.error is None


def test_a_human_tag_inside_a_message_starts_no_turn():
    text = 'In plays, write "Human: hello" or\nAssistant: hi before a line?'
    parsed = HH.parse({"chosen": dialogue(text, "Yes."), "rejected": dialogue(text, "No.")})
    assert parsed.messages == (Message("user", text),)
    assert parsed.rules == ("marker_in_text",)


def test_blank_lines_inside_a_message_start_no_turn():
    text = "First paragraph.\n\nSecond: one.\n\n  Human: indented"
    assert HH.parse({"chosen": dialogue(text, "ok")}).messages[0].content == text


def test_two_assistant_turns_at_the_end_are_one_reply():
    row = {"chosen": "\n\nHuman: hi\n\nAssistant: Hello.\n\nAssistant: How are you?"}
    parsed = HH.parse(row)
    assert parsed.text == "\n\nHuman: hi\n\nAssistant:"
    assert parsed.meta["preferred"] == "Hello.\n\nHow are you?"
    assert parsed.rules == ("split_reply",)


def test_an_empty_reply_and_an_empty_turn_are_counted_and_stay():
    parsed = HH.parse({"chosen": dialogue("hi", "", "still there?", "")})
    assert parsed.error is None
    assert parsed.rules == ("empty_reply", "empty_turn")
    assert parsed.messages[1] == Message("assistant", "")


def test_prompts_that_differ_are_counted_and_the_chosen_one_is_used():
    parsed = HH.parse({"chosen": dialogue("one", "a"), "rejected": dialogue("two", "b")})
    assert parsed.messages[0].content == "one"
    assert parsed.rules == ("prompts_differ",)


def test_a_dialogue_that_ends_with_the_human_loses_no_turn():
    parsed = HH.parse({"chosen": dialogue("one", "a", "two")})
    assert parsed.text.endswith("\n\nHuman: two\n\nAssistant:")
    assert parsed.rules == ("no_reply",)


def test_text_before_the_first_turn_is_a_system_turn():
    parsed = HH.parse({"chosen": "Be brief." + dialogue("hi", "Hello.")})
    assert roles(parsed) == ["system", "user"]
    assert parsed.rules == ("preamble",)


def test_rows_without_a_question_are_errors():
    assert "no human turn" in HH.parse({"chosen": "just text"}).error
    assert "no human turn" in HH.parse({"chosen": "\n\nAssistant: hello"}).error
    assert "empty" in HH.parse({"chosen": dialogue("   ", "hello")}).error
    assert "no column 'chosen'; its columns are text, id" in HH.parse({"text": "x", "id": 1}).error
    assert "holds a number, not text" in HH.parse({"chosen": 3}).error
    assert "holds null" in HH.parse({"chosen": None}).error


def test_reading_and_writing_a_dialogue_are_inverse():
    text = "\n\nHuman:  two spaces \n\nAssistant: \n\nHuman: x\n\nHuman: y"
    assert write_turns(read_turns(text)) == text + "\n\nAssistant:"


def test_a_dialogue_without_leading_newlines_reads_the_same():
    text = dialogue("hi", "hello", "bye")
    assert read_turns(text.lstrip()) == read_turns(text)
