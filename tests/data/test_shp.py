import pytest

from aisp_ray.data.shp import Shp
from aisp_ray.types import Message

SHP = Shp(path="unused.jsonl")


def test_the_post_is_the_prompt_and_the_preferred_answer_is_kept():
    row = {
        "post_id": "ab12",
        "domain": "askbaking_test",
        "history": " Why does my bread sink?\nIt rose fine. ",
        "labels": 0,
    }
    parsed = SHP.parse({**row, "human_ref_A": "No idea", "human_ref_B": "Too much water"})
    assert parsed.text == "Why does my bread sink?\nIt rose fine."
    assert parsed.messages == (Message("user", parsed.text),)
    assert parsed.meta == {"post_id": "ab12", "domain": "askbaking_test", "preferred": "Too much water"}


def test_label_one_prefers_answer_a():
    parsed = SHP.parse({"history": "q", "labels": 1, "human_ref_A": "first", "human_ref_B": "second"})
    assert parsed.meta["preferred"] == "first"


@pytest.mark.parametrize(
    ("label", "reply"),
    [("1", "first"), (" 1 ", "first"), (1.0, "first"), ("1.0", "first"), (True, "first"), ("0", "second"),
     (0.0, "second"), (False, "second"), (None, None), ("", None), ("2", None), (float("nan"), None)],
)  # fmt: skip
def test_labels_of_every_format_are_read(label, reply):
    parsed = SHP.parse({"history": "q", "labels": label, "human_ref_A": "first", "human_ref_B": "second"})
    assert parsed.meta.get("preferred") == reply


def test_posts_with_human_tags_or_unicode_stay_as_they_are():
    text = "Human: is this a tag?\n\nAssistant: or this? – żółć 雪"
    assert SHP.parse({"history": text}).messages == (Message("user", text),)


def test_a_post_is_known_by_its_id_where_it_has_one():
    assert SHP.parse({"history": "q", "post_id": "x"}).key == "post x"
    assert SHP.parse({"history": "q"}).key is None


def test_rows_without_a_post_are_errors():
    assert "empty" in SHP.parse({"history": " \n "}).error
    assert "no column 'history'" in SHP.parse({"prompt": "q"}).error
    assert "holds a list" in SHP.parse({"history": ["q"]}).error
