import bz2
import gzip
import json
import lzma
import tarfile
import tracemalloc
import zipfile

import pytest

from aisp_ray.data.prompts import Prompts
from aisp_ray.data.shp import Shp
from aisp_ray.data.stream import rows_locally

ROWS = [{"prompt": f"question {index}"} for index in range(5)]
TEXTS = [row["prompt"] for row in ROWS]


def texts(path, **settings):
    return [prompt.error or prompt.text for prompt in rows_locally(Prompts(path=str(path), **settings))]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_every_format_gives_the_same_prompts(tmp_path):
    import pandas as pd

    table = pd.DataFrame(ROWS)
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "lines.json").write_bytes(lines(ROWS))
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "columns.json").write_text(json.dumps({"prompt": TEXTS}, indent=1))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    (tmp_path / "a.ndjson.bz2").write_bytes(bz2.compress(lines(ROWS)))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(ROWS))
    (tmp_path / "plain.txt").write_bytes(lines(ROWS))
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        kind = "jsonl" if path.suffix == ".txt" else None
        assert texts(path, format=kind) == TEXTS, path.name


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.GZ", "a.JSONL", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst", "a.ndjson.lz4", "rows"]
)
@pytest.mark.parametrize("packing", ["gzip", "bz2", "xz", "zstd", "lz4", "two members", "plain"])
def test_compression_is_known_by_the_content_whatever_the_name(tmp_path, name, packing):
    import pyarrow as pa

    data = lines(ROWS)
    packed = {
        "gzip": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
        "lz4": lambda data: pa.compress(data, "lz4", asbytes=True),
        "two members": lambda data: gzip.compress(data[:30]) + gzip.compress(data[30:]),
        "plain": bytes,
    }[packing](data)
    path = tmp_path / name
    path.write_bytes(packed)
    kind = "jsonl" if name == "rows" else None
    assert Prompts(path=str(path), format=kind).check() == []
    assert texts(path, format=kind) == TEXTS


def test_archives_are_refused_before_loading_and_are_error_rows_behind(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.jsonl", "w") as archive:
        archive.writestr("rows.jsonl", lines(ROWS))
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    with tarfile.open(tmp_path / "b.jsonl.gz", "w:gz") as archive:
        archive.add(tmp_path / "rows.jsonl", "rows.jsonl")
    for name, words in (("a.jsonl", "a.jsonl is a ZIP archive"), ("b.jsonl.gz", "b.jsonl.gz is a tar archive")):
        (problem,) = Prompts(path=str(tmp_path / name)).check()
        assert words in problem
    assert "is a ZIP archive" in Prompts(path=str(tmp_path)).check()[0]
    assert "is a ZIP archive" in texts(tmp_path / "a.jsonl")[0]


def test_a_line_that_is_too_long_is_one_error_in_bounded_memory(tmp_path):
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as stream:
        stream.write(b'{"prompt": "first"}\n{"prompt": "')
        for _ in range(64):
            stream.write(b"a" * (1 << 20))
        stream.write(b'"}\n{"prompt": "last"}\n')
    tracemalloc.start()
    found = texts(bomb, max_line_mb=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["first", "line 2 of bomb.jsonl.gz is longer than 1 MiB: data.max_line_mb", "last"]
    assert peak < 16 << 20
    assert len(texts(bomb)[1]) == 64 << 20 or "longer than 64 MiB" in texts(bomb)[1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"[" + b'{"prompt": "x"}, ' * 10 + b"1" * (17 << 20) + b"]", "one JSON document above 16 MiB"),
        (
            "a.json",
            b'{"prompt": "x"}\n{"prompt": "' + b"a" * (2 << 20) + b'"}\n',
            "line 2 of a.json is longer than 1 MiB",
        ),
        ("a.csv", b"prompt\nfirst\n" + b"a" * (2 << 20) + b"\n", "line 3 is longer than 1 MiB"),
        ("a.csv", b'prompt\nfirst\n"never closed\n' + b"a\n" * (1 << 20), "field larger than field limit"),
    ],
)
def test_long_documents_and_fields_are_errors_too(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    found = texts(tmp_path / name, max_line_mb=1)
    assert words in found[-1]


def test_lines_under_the_name_json_are_read_as_they_come(tmp_path):
    path = tmp_path / "lines.json"
    path.write_bytes(b"\xef\xbb\xbf\n" + lines(ROWS[:2]) + b"\n{broken\n" + lines(ROWS[2:]))
    found = texts(path)
    assert [text for text in found if text.startswith("question")] == TEXTS
    assert sum("line 5 of lines.json is not JSON" in text for text in found) == 1


def test_files_that_are_no_data_are_skipped_with_a_notice(tmp_path, caplog):
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (tmp_path / "notes.json").write_text(json.dumps({"author": "me", "licence": "MIT"}, indent=1))
    (tmp_path / "README.md").write_text("x")
    assert texts(tmp_path) == TEXTS
    assert "no data, skipped: README.md, dataset_infos.json, notes.json" in caplog.text
    (tmp_path / "more.json").write_text(json.dumps({"prompt": "one row"}))
    assert texts(tmp_path) == ["one row", *TEXTS]
    assert texts(f"file://{tmp_path}")[-5:] == TEXTS


def test_partitions_choose_the_split_and_are_columns(tmp_path):
    for split, lang, text in (
        ("train", "de", "a"),
        ("test", "de", "b"),
        ("test", "fr%20CA", "c"),
        ("dev_2", "de", "d"),
    ):
        folder = tmp_path / f"split={split}" / f"lang={lang}"
        folder.mkdir(parents=True)
        (folder / "part-0.jsonl").write_bytes(lines([{"prompt": text}]))
    for path in (tmp_path, f"file://{tmp_path}"):
        spec = Prompts(path=str(path), split="test", keep=("lang", "split"))
        metas = {prompt.text: dict(prompt.meta) for prompt in rows_locally(spec)}
        assert metas == {"b": {"lang": "de", "split": "test"}, "c": {"lang": "fr CA", "split": "test"}}
        assert texts(path, split="dev_2") == ["d"]
        assert "it has dev_2, test, train: set data.split" in Prompts(path=str(path), split="x").check()[0]
    assert texts(tmp_path / "split=t*" / "*" / "*.jsonl") == ["b", "c", "a"]
    (tmp_path / "split=test" / "lang=de" / "part-0.jsonl").write_bytes(lines([{"prompt": "b", "lang": "own"}]))
    assert next(iter(rows_locally(Prompts(path=str(tmp_path), split="test", keep=("lang",))))).meta == {"lang": "own"}


def test_one_json_object_is_one_row(tmp_path):
    path = tmp_path / "one.json"
    path.write_text('{"prompt": "a", "n": 1}')
    assert texts(path) == ["a"]


def test_a_bad_line_is_an_error_that_names_it_and_the_others_are_read(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": \n[1]\n\n"text"\n{"prompt": "\xff"}\n{"prompt": 1}\n{"prompt": "b"}')
    found = texts(path)
    assert [found[0], found[-1]] == ["a", "b"]
    assert len(found) == 7
    assert found[1].startswith("line 2 of mixed.jsonl is not JSON")
    assert found[2] == "line 3 of mixed.jsonl holds list, not an object with columns"
    assert found[4].startswith("line 6 of mixed.jsonl is not UTF-8")
    assert found[5] == "column 'prompt' holds a number, not text"


def test_rows_with_other_columns_and_types_may_be_mixed(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(
        lines([{"prompt": "a", "x": 1}, {"x": "two", "prompt": "b", "y": [1, "z", None]}, {"prompt": "c", "x": {}}])
    )
    assert texts(path) == ["a", "b", "c"]


def test_a_csv_row_with_too_many_fields_is_an_error(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,n\n"a, with ""quotes"" and\nnewline",1\nb,2,3\nc\n')
    found = texts(path)
    assert found[0] == 'a, with "quotes" and\nnewline'
    assert found[1] == "row 2 of a.csv has more fields than the header's 2"
    assert found[2] == "c"


def test_a_torn_file_gives_what_it_holds_and_one_error(tmp_path):
    whole = gzip.compress(lines([{"prompt": f"{i} " + "ab" * (i % 37)} for i in range(4000)]))
    path = tmp_path / "torn.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    found = texts(path, dedup=False)
    assert found[0].startswith("0 ")
    assert found[-1].startswith("torn.jsonl.gz cannot be read on: EOFError")
    assert sum("cannot be read on" in text for text in found) == 1
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 not really")
    assert len(texts(bad)) == 1


def test_a_folder_gives_the_files_of_the_split_in_name_order(tmp_path):
    (tmp_path / "data" / ".cache").mkdir(parents=True)
    (tmp_path / "data" / "test-00001.jsonl").write_bytes(lines([{"prompt": "second"}]))
    (tmp_path / "data" / "test-00000.jsonl").write_bytes(lines([{"prompt": "first"}]))
    (tmp_path / "data" / "train.jsonl").write_bytes(lines([{"prompt": "other"}]))
    (tmp_path / "data" / ".cache" / "test.jsonl").write_bytes(lines([{"prompt": "hidden"}]))
    (tmp_path / "README.md").write_text("x")
    assert texts(tmp_path, split="test") == ["first", "second"]
    assert texts(tmp_path / "data" / "*.jsonl") == ["first", "second", "other"]
    assert Prompts(path=str(tmp_path), split="dev").check() == [
        f"data.path={tmp_path}: no file of the split 'dev'; it has test, train: set data.split"
    ]


def test_a_file_uri_reads_like_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    assert texts(f"file://{tmp_path}/a.jsonl") == TEXTS
    assert texts(f"file://{tmp_path}") == TEXTS
    assert "nothing is there" in Prompts(path=f"file://{tmp_path}/b.jsonl").check()[0]
    assert "cannot be listed" in Prompts(path="nosuch://x/y.jsonl").check()[0]


def test_a_saved_datasets_folder_is_read(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == TEXTS
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "many")
    assert texts(tmp_path / "many", split="train") == TEXTS
    assert "it has train: set data.split" in Prompts(path=str(tmp_path / "many"), split="test").check()[0]


def test_what_is_not_there_is_one_sentence_before_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    for path, words in {
        "": "data.path is not set",
        "/nowhere/rows.jsonl": "no such file or folder",
        "rows.jsonl": "no such file or folder",
        "some/deep/folder": "no such file or folder",
        str(tmp_path / "empty"): "holds no .jsonl",
        str(tmp_path / "*.parquet"): "nothing matches this glob",
        "a.txt": "set data.format=jsonl|json|csv|parquet",
        "demo:nothing": "there is no such set in the package",
    }.items():
        problems = Prompts(path=path).check()
        assert len(problems) == 1
        assert words in problems[0], path


def test_a_column_that_no_row_has_is_found_before_the_run(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"question": "a", "n": 1}, {"question": "b"}]))
    assert Prompts(path=str(path)).check() == [
        f"data.path={path}: no row has a column 'prompt' or 'messages'; its columns are question, n"
    ]
    assert Prompts(path=str(path), column="question").check() == []
    assert "no row has a column 'history'" in Shp(path=str(path)).check()[0]
    path.write_bytes(lines([{"question": "a"}, {"prompt": "b"}]))
    assert Prompts(path=str(path)).check() == []


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder in ("one", "two"):
        (tmp_path / folder / "a.jsonl").write_bytes(lines(ROWS))
    prints = [Prompts(path=str(tmp_path / folder / "a.jsonl")).fingerprint() for folder in ("one", "two")]
    assert prints[0] == prints[1]
    (tmp_path / "two" / "a.jsonl").write_bytes(lines(ROWS[::-1]))
    assert Prompts(path=str(tmp_path / "two" / "a.jsonl")).fingerprint() != prints[0]


def test_a_hub_name_is_looked_up_before_the_run(monkeypatch):
    from aisp_ray.lm import hub

    def look_up(name, key, kind, revision):
        if revision == "v9":
            raise ValueError("no revision 'v9'")
        return "c0ffee"

    monkeypatch.setattr(hub, "look_up", look_up)
    assert Shp(revision="v9").check() == ["no revision 'v9'"]
    assert Shp().check() == []
    assert Shp().fingerprint() == {
        "kind": "hub",
        "set": "stanfordnlp/SHP",
        "subset": None,
        "split": "test",
        "commit": "c0ffee",
    }


@pytest.mark.parametrize("module", ["shp", "hh_rlhf", "prompts", "stream", "select"])
def test_settings_import_without_heavy_libraries(module):
    import subprocess
    import sys

    code = f"import sys, aisp_ray.data.{module}; print({{'torch', 'ray', 'pyarrow', 'datasets'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
