"""Files appear whole or not at all, on a disk and on an object store."""

import math
import pickle
from unittest import mock

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from aisp_ray.files import Output, differences, inside, part_name, resolve, split_query, to_table
from aisp_ray.pipeline.manifest import Tally
from aisp_ray.pipeline.run import check_output
from aisp_ray.plan import Plan, RunSettings
from aisp_ray.results import ROW_SCHEMA


def test_a_uri_and_a_path_are_the_same_place(tmp_path):
    for out in (str(tmp_path), f"file://{tmp_path}"):
        filesystem, root = resolve(out)
        assert isinstance(filesystem, pafs.LocalFileSystem)
        assert root == str(tmp_path)


def test_a_name_goes_before_the_query_of_a_uri():
    assert inside("s3://b/o/?endpoint_override=host:9000&scheme=http", "rows") == (
        "s3://b/o/rows?endpoint_override=host:9000&scheme=http"
    )
    assert (inside("o/", "rows"), inside("why?", "rows"), inside("/", "rows")) == ("o/rows", "why?/rows", "/rows")
    assert (split_query("s3://b/o/?x"), split_query("/")) == (("s3://b/o", "?x"), ("/", ""))


def test_an_unknown_scheme_is_refused_with_what_is_known():
    with pytest.raises(ValueError, match="s3://"):
        resolve("ftp://host/x")


def test_a_file_that_is_being_written_is_not_seen_and_leaves_nothing_behind(tmp_path):
    output = Output(str(tmp_path))
    output.write("rows/part-a-00000000.parquet", b"old")
    with mock.patch("os.fsync", side_effect=OSError("disk full")), pytest.raises(OSError, match="disk full"):
        output.write("rows/part-a-00000000.parquet", b"new")
    assert output.read("rows/part-a-00000000.parquet") == b"old"
    assert [p.name for p in (tmp_path / "rows").iterdir()] == ["part-a-00000000.parquet"]
    assert list((tmp_path / "_state").iterdir()) == []


def test_an_object_store_gets_one_write_of_the_whole_file(tmp_path):
    output = Output(str(tmp_path))
    written = []

    class Stream:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            written.append("closed")

        def write(self, data):
            written.append(len(data))

    output.filesystem = mock.Mock()
    output.filesystem.open_output_stream.return_value = Stream()
    assert not output.is_local
    table = to_table([], ROW_SCHEMA)
    output.write_part(table, "aisp", 3)
    (path,) = output.filesystem.open_output_stream.call_args.args
    assert path == f"{tmp_path}/rows/part-aisp-00000003.parquet"
    assert [type(item) for item in written] == [int, str]


def test_parts_are_listed_and_read_through_any_filesystem(tmp_path):
    output = Output(str(tmp_path))
    assert output.parts() == []
    row = dict.fromkeys(ROW_SCHEMA.names) | {"ordinal": 5, "ess": [1.0, None], "method": "best-of_n"}
    output.write_part(to_table([row], ROW_SCHEMA), "best-of_n", 2)
    (tmp_path / "rows" / "readme.txt").write_text("not a part")
    assert output.parts() == [("best-of_n", 2)]
    other = pickle.loads(pickle.dumps(output))
    other.filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    other.root = ""
    assert other.read_part("best-of_n", 2, ["ordinal", "ess"]).to_pylist() == [{"ordinal": 5, "ess": [1.0, None]}]
    assert pq.read_schema(tmp_path / "rows" / part_name("best-of_n", 2)).field("ess").type == pa.list_(pa.float64())


def test_json_that_is_broken_is_said_with_its_name(tmp_path):
    output = Output(str(tmp_path))
    assert output.read_json("manifest.json") is None
    output.write("manifest.json", b"{")
    with pytest.raises(ValueError, match=r"manifest\.json is not valid JSON"):
        output.read_json("manifest.json")


def test_differences_name_the_key_and_both_values():
    before = {"method": {"aisp": {"sigma": 0.5, "n": 4}}, "seed": 0, "old": 1}
    now = {"method": {"aisp": {"sigma": 0.7, "n": 4}}, "seed": 0, "new": 2}
    assert differences(before, now) == [
        "method.aisp.sigma: 0.5 there, 0.7 now",
        "new: absent there, 2 now",
        "old: 1 there, absent now",
    ]
    assert differences(now, now) == []


def test_secrets_are_neither_kept_nor_a_difference(tmp_path):
    output = Output(str(tmp_path))
    before, now = ({"data": {"path": f"https://me:{word}@host/x", "token": word}, "n": 1} for word in ("old", "new"))
    output.write_json("manifest.json", before)
    assert "old" not in (tmp_path / "manifest.json").read_text()
    assert differences(output.read_json("manifest.json"), now) == []
    assert differences(before, {**now, "n": 2}) == ["n: 1 there, 2 now"]
    plans = [Plan({}, None, None, {}, None, RunSettings(), 0, None, "o", fingerprint=each) for each in (before, now)]
    assert plans[0].config_hash == plans[1].config_hash


@pytest.mark.parametrize("place", ["/proc/x", "/proc/1/y/z", "/sys/new", "/dev/null/x", "{file}", "{file}/a/b"])
def test_a_place_that_cannot_be_written_is_refused_in_a_sentence(place, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    place = place.format(file=file)
    (said,) = check_output(place)
    assert said.startswith(f"out={place} cannot be written to: ")
    assert said.endswith("; give a folder or URI that this user may write in")
    assert "\n" not in said


def test_the_look_at_a_place_leaves_nothing(tmp_path):
    assert check_output(str(tmp_path / "new" / "deep")) == []
    assert check_output(f"file://{tmp_path}/other") == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    assert check_output(str(tmp_path / "there")) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_an_object_store_that_takes_no_files_is_refused(monkeypatch):
    class ReadOnly(pafs.LocalFileSystem):
        def open_output_stream(self, *_, **__):
            raise OSError("AWS Error ACCESS_DENIED during PutObject operation\nand more")

    monkeypatch.setattr("aisp_ray.files.resolve", lambda out: (pafs.SubTreeFileSystem("/", ReadOnly()), "/bucket"))
    (said,) = check_output("s3://bucket")
    assert "cannot be written to" in said
    assert "\n" not in said


def test_a_mean_reward_does_not_depend_on_which_search_ended_first():
    rewards = [0.1 * k for k in range(12)] + [1e16, -1e16]
    means = set()
    for turn in range(len(rewards)):
        tally = Tally()
        for reward in rewards[turn:] + rewards[:turn]:
            tally.add("ok", reward)
        tally.add("error", None)
        means.add(tally.as_json()["mean_reward"])
    assert means == {math.fsum(rewards) / len(rewards)}
