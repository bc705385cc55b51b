"""The stream by Ray Data against the plain reader."""

import json

import pytest

from aisp_ray.data.hh_rlhf import HhRlhf
from aisp_ray.data.prompts import Prompts
from aisp_ray.data.select import DropReport
from aisp_ray.data.stream import rows_locally, stream_prompts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files with mixed columns, bad lines, repeats, half a surrogate pair and empty rows."""
    path = tmp_path_factory.mktemp("rows")
    for number in range(2):
        rows = [json.dumps({"prompt": f"q {number} {i} ż", "n": i if i % 2 else str(i)}) for i in range(400)]
        rows[5] = "{broken"
        rows[6] = json.dumps({"prompt": "the same"})
        rows[7] = json.dumps({"prompt": "half \ud83d"})
        rows[8] = json.dumps({"prompt": 8})
        (path / f"part-{number}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return path


def both(spec, limit=None):
    reports = DropReport(), DropReport()
    return list(stream_prompts(spec, limit, reports[0])), list(rows_locally(spec, limit, reports[1])), reports


def test_the_stream_gives_the_plain_readers_prompts_in_its_order(folder):
    streamed, plain, reports = both(Prompts(path=str(folder)))
    assert streamed == plain
    assert reports[0] == reports[1]
    assert reports[0].num_rows == 800
    assert reports[0].num_errors == 4
    assert reports[0].dropped == {"duplicate": 2}


def test_a_limit_and_a_sample_are_the_same_in_the_stream(folder):
    for spec, limit in ((Prompts(path=str(folder)), 11), (Prompts(path=str(folder), sample=20), None)):
        streamed, plain, _ = both(spec, limit)
        assert streamed == plain
        assert len(streamed) == (limit or 20)


def test_dialogues_cross_the_stream_whole(tmp_path):
    path = tmp_path / "hh.jsonl"
    row = {"chosen": "\n\nHuman: hi \n\nAssistant: \n\nHuman: 雪\n\nAssistant: x", "rejected": None}
    path.write_text(json.dumps(row))
    streamed, plain, _ = both(HhRlhf(path=str(path)))
    assert streamed == plain
    assert [turn.content for turn in streamed[0].messages] == ["hi ", "", "雪"]


def test_the_dataset_is_ordinary_ray_data(folder):
    records = Prompts(path=str(folder)).read()
    assert records.columns() == ["record"]
    assert json.loads(records.take(1)[0]["record"]) == {"row": {"prompt": "q 0 0 ż", "n": "0"}}


def test_an_empty_file_is_an_empty_stream(tmp_path):
    (tmp_path / "nothing.jsonl").touch()
    streamed, plain, reports = both(Prompts(path=str(tmp_path / "nothing.jsonl")))
    assert (streamed, plain, reports[0].num_rows) == ([], [], 0)


def test_nothing_there_is_a_value_error():
    with pytest.raises(ValueError, match="no such file"):
        stream_prompts(Prompts(path="/nowhere/x.jsonl"))
