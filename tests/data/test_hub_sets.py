"""Sets of the `datasets` library, on a folder that stands for the hub."""

import json

import pytest

from aisp_ray import config
from aisp_ray.data._source import File, HubSet
from aisp_ray.data.stream import rows_locally
from aisp_ray.lm import hub


@pytest.fixture
def _hub(monkeypatch):
    monkeypatch.setattr(hub, "look_up", lambda name, *_: "c0ffee")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for split, count in (("train", 3), ("test", 2)):
        rows = [{"prompt": f"{split} {i}", "nested": {"a": [i, None]}} for i in range(count)]
        (tmp_path / "set" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "set")


@pytest.mark.parametrize("offline", [False, True])
def test_a_split_is_read_by_the_datasets_library(offline, folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(HubSet, "commit", lambda self: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    records = list(HubSet(folder, None, "test", None).records())
    assert records == [{"row": {"prompt": f"test {i}", "nested": {"a": [i, None]}}} for i in range(2)]


@pytest.mark.usefixtures("_hub")
@pytest.mark.parametrize(
    ("name", "more", "asked"),
    [
        ("shp", {}, ("stanfordnlp/SHP", {"split": "test"})),
        ("hh_rlhf", {"subset": "harmless-base"}, ("Anthropic/hh-rlhf", {"split": "test", "data_dir": "harmless-base"})),
        ("gsm8k", {"split": "train"}, ("openai/gsm8k", {"split": "train", "name": "main"})),
        ("mbpp", {}, ("google-research-datasets/mbpp", {"split": "test", "name": "sanitized"})),
        ("mbpp_plus", {}, ("evalplus/mbppplus", {"split": "test"})),
        ("math", {}, ("HuggingFaceH4/MATH-500", {"split": "test"})),
    ],
)
def test_each_set_of_the_hub_is_asked_for_by_its_name_part_and_commit(name, more, asked, monkeypatch):
    import datasets

    seen = []
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **where: seen.append((path, where)) or [{"x": 1}])
    spec = config.build({**config.read_choice("data", name), **more}, "data")
    assert spec.check() == []
    assert len(list(rows_locally(spec))) == 1
    assert seen == [(asked[0], {**asked[1], "revision": "c0ffee", "streaming": True})]
    assert spec.pinned().revision == "c0ffee"


def test_a_broken_connection_ends_the_job_and_a_broken_file_does_not(monkeypatch, tmp_path):
    class Broken:
        def __init__(self, error):
            self.error, self.calls = error, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def readline(self, size=-1):
            self.calls += 1
            if self.calls > 1:
                raise self.error
            return b'{"prompt": "a"}\n'

    file = File("s3://bucket/a.jsonl", "a.jsonl", "jsonl", 9)
    monkeypatch.setattr(File, "open", lambda self: Broken(OSError("connection reset")))
    records = file.records()
    assert next(records) == {"row": {"prompt": "a"}}
    with pytest.raises(OSError, match="connection reset"):
        next(records)
    monkeypatch.setattr(File, "open", lambda self: Broken(EOFError("torn")))
    assert "cannot be read on: EOFError: torn" in list(file.records())[1]["error"]


def test_a_file_that_a_node_does_not_have_is_no_error_row(tmp_path):
    with pytest.raises(FileNotFoundError, match="put the data on a disk that all nodes share"):
        next(File(str(tmp_path / "gone.jsonl"), "gone.jsonl", "jsonl", 9).records())
