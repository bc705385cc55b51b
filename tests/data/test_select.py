import json
import random
from dataclasses import asdict

from aisp_ray.data import _seen
from aisp_ray.data._records import encode
from aisp_ray.data.base import Parsed
from aisp_ray.data.prompts import Prompts
from aisp_ray.data.select import DropReport, select
from aisp_ray.types import Message


def row(text, **fields):
    return Parsed(text, (Message("user", text),), **fields)


def chosen(rows, limit=None, **settings):
    report = DropReport()
    prompts = list(select(rows, Prompts(path="set.jsonl", **settings), limit, report))
    return prompts, report


def test_prompts_are_numbered_in_input_order_after_the_drops():
    prompts, report = chosen([row("a"), row("b"), row("a"), Parsed(error="bad"), row("c")], max_prompt_tokens=9)
    assert [prompt.text for prompt in prompts] == ["a", "b", "", "c"]
    assert [prompt.prompt_id for prompt in prompts] == [f"set/train/{i:08d}" for i in range(4)]
    assert [prompt.ordinal for prompt in prompts] == [0, 1, 2, 3]
    assert {prompt.max_tokens for prompt in prompts} == {9}
    assert (report.num_rows, report.num_prompts, report.num_errors) == (5, 3, 1)
    assert report.dropped == {"duplicate": 1}
    assert report.complete


def test_every_row_is_a_prompt_an_error_or_counted_as_dropped():
    rows = [row(str(index % 7)) for index in range(30)] + [Parsed(error="x")] * 3
    for settings in ({}, {"dedup": False}, {"sample": 4}, {"sample": 100}):
        _, report = chosen(rows, **settings)
        assert report.num_rows == report.num_prompts + report.num_errors + sum(report.dropped.values()) == 33


def test_a_text_is_new_once_also_after_it_has_moved_to_the_array(monkeypatch):
    monkeypatch.setattr(_seen, "_LEAST_MERGED", 8)
    rng, seen, reference = random.Random(1), _seen.Seen(), set()
    for _ in range(2000):
        text = str(rng.randrange(500))
        assert seen.add(text) == (text not in reference)
        reference.add(text)
        assert len(seen) == len(reference)
    assert len(seen._first) > 300


def test_duplicates_go_by_key_where_a_row_has_one_and_errors_are_never_duplicates():
    prompts, _ = chosen([row("a", key="1"), row("b", key="1"), Parsed(error="x"), Parsed(error="x")])
    assert [prompt.text for prompt in prompts] == ["a", "", ""]


def test_a_limit_stops_the_reading():
    def rows():
        yield from (row(str(index)) for index in range(3))
        raise AssertionError("read on")

    prompts, report = chosen(rows(), limit=3)
    assert len(prompts) == 3
    assert not report.complete
    assert (
        report.lines(Prompts(path="x"))[0]
        == "data: 3 rows read (the rest was not needed): 3 prompts, 0 of them unusable"
    )
    assert chosen(rows(), limit=0)[0] == []


def test_a_sample_is_uniform_named_and_in_input_order():
    rows = [row(f"text {index}") for index in range(400)]
    first, report = chosen(rows, sample=50)
    assert [p.text for p in first] == [p.text for p in chosen(rows, sample=50)[0]]
    assert [p.text for p in first] != [p.text for p in chosen(rows, sample=50, sample_seed=1)[0]]
    positions = [int(prompt.text.split()[1]) for prompt in first]
    assert positions == sorted(positions)
    assert sum(position < 200 for position in positions) in range(13, 38)  # 25 +- 3.5 standard deviations
    assert report.dropped["not_sampled"] == 350
    assert {p.text for p in chosen(rows[:399], sample=50)[0]} >= {p.text for p in first} - {"text 399"}


def test_half_a_surrogate_pair_is_replaced_counted_and_can_be_written():
    text = json.loads('"broken \\ud83d emoji"')
    prompts, report = chosen([row(text, meta={"preferred": [text]})])
    assert prompts[0].text == "broken \ufffd emoji"
    assert prompts[0].messages[0].content == prompts[0].text
    assert prompts[0].meta == {"preferred": ["broken \ufffd emoji"]}
    assert report.rules == {"lone_surrogates": 1}
    assert "replaced by U+FFFD" in report.lines(Prompts(path="x"))[1]


def test_whole_surrogate_pairs_and_other_scripts_are_left_alone():
    text = json.loads('"\\ud83d\\ude00 雪 é"')
    prompts, report = chosen([row(text)])
    assert prompts[0].text == "😀 雪 é"
    assert not report.rules


def test_records_keep_what_json_can_say_and_name_the_rest():
    import datetime

    value = {"row": {"a": datetime.date(2024, 1, 2), "b": b"x", "c": "\ud800", "d": (1, None)}}
    assert json.loads(encode(value)) == {"row": {"a": "2024-01-02", "b": "x", "c": "\ud800", "d": [1, None]}}


def test_the_report_names_each_rule_in_words():
    report = DropReport(num_rows=3, num_prompts=3, complete=True)
    report.rules["reply_cut"] = 2
    assert report.lines(Prompts(path="x")) == [
        "data: 3 rows read: 3 prompts, 0 of them unusable",
        "data: 2 rows: assistant turns at the end, cut off",
    ]
    assert json.loads(json.dumps(report.as_dict()))["rules"] == {"reply_cut": 2}
    assert asdict(report)["complete"]
