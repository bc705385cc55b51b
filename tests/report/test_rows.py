"""Reading outputs: several at once, unfinished ones, and what a line of the table is called."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_rows import made_row, write_output

from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.rows import name_of, output_list, read_rows
from aisp_ray.report.write import make_report


def config(sigma: float, seed: int = 0) -> dict:
    return {
        "method": {"aisp": {"n": 4, "sigma": sigma}, "best_of_n": {"n": 4}},
        "policy": {"model": "demo"},
        "data": {"path": "x"},
        "seed": seed,
    }


def test_seeds_of_one_setting_share_a_label(tmp_path):
    outs = [
        str(write_output(tmp_path / f"s{seed}", [made_row("aisp", i, seed) for i in range(4)], config(0.5, seed)))
        for seed in (0, 1)
    ]
    rows = read_rows(outs)
    assert set(rows["label"].to_pylist()) == {"aisp"}
    assert rows.num_rows == 8


def test_settings_that_differ_between_outputs_name_the_lines(tmp_path):
    for name, sigma in (("a", 0.3), ("b", 0.5)):
        made = [made_row(method, i, 0) for method in ("aisp", "best_of_n") for i in range(4)]
        write_output(tmp_path / name, made, config(sigma))
    rows = read_rows([tmp_path / "a", tmp_path / "b"])
    labels = rows["label"].to_pylist()
    assert set(labels) == {"aisp sigma=0.3", "aisp sigma=0.5", "best_of_n"}
    assert labels.count("best_of_n") == 4, "the same baseline in both outputs counts once"


def test_the_same_output_twice_counts_once(tmp_path):
    out = write_output(tmp_path / "o", [made_row("aisp", i, 0) for i in range(4)])
    assert read_rows([str(out), f"{out}/"]).num_rows == 4
    assert read_rows(str(out / "rows")).num_rows == 4


def test_the_rows_folder_stands_for_its_output(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    outs = [write_output(tmp_path / f"s{s}", [made_row("aisp", i, 0) for i in range(4)], config(s)) for s in (0.3, 0.7)]
    named = [f"{out}/rows/" for out in outs]
    assert output_list(named) == [str(out) for out in outs]
    assert set(read_rows(named)["label"].to_pylist()) == {"aisp sigma=0.3", "aisp sigma=0.7"}
    assert make_report(named).to == f"{outs[0]}/report"
    assert {path.suffix for path in (outs[0] / "rows").iterdir()} == {".parquet"}
    assert ExportSettings(out=tuple(named)).folder == f"{outs[0]}/export/preference"
    monkeypatch.chdir(outs[0])
    assert output_list("rows") == ["."]


def test_an_output_that_is_called_rows_is_itself(tmp_path):
    out = str(write_output(tmp_path / "rows", [made_row("aisp", 0, 0), made_row("aisp", 1, 0)], config(0.5)))
    assert output_list([out, f"{out}/rows"]) == [out]
    assert output_list(["s3://rows"]) == ["s3://rows"]


def test_a_uri_s_query_stays_behind_the_paths_that_are_made_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    folder = write_output(tmp_path / "out", [made_row("aisp", i, 0) for i in range(4)], config(0.5))
    report = make_report(f"file://{folder}/?endpoint_override=host:9000&scheme=http")
    assert report.to == f"file://{folder}/report?endpoint_override=host:9000&scheme=http"
    assert report.page == f"file://{folder}/report/index.html?endpoint_override=host:9000&scheme=http"
    assert (folder / "report" / "index.html").is_file()
    assert (report.name, name_of(f"file://{folder}?x=a/b")) == ("out", "out")
    assert output_list(f"file://{folder}/rows?x=y") == [f"file://{folder}?x=y"]
    assert ExportSettings(out=("s3://b/o/?x=y",)).folder == "s3://b/o/export/preference?x=y"
    assert ExportSettings(out=("o",), to="s3://b/o/?x=y").folder == "s3://b/o?x=y"
    with pytest.raises(ValueError, match=r"no rows in file://.*/none/rows/\*\.parquet\?x=y"):
        read_rows(f"file://{tmp_path}/none?x=y")


def test_half_written_and_hidden_files_are_left_out_and_missing_columns_are_null(tmp_path):
    out = write_output(tmp_path / "o", [made_row("aisp", i, 0) for i in range(4)])
    (out / "rows" / ".part-9.parquet").write_bytes(b"not yet")
    (out / "rows" / "_tmp").mkdir()
    (out / "rows" / "_tmp" / "part.parquet").write_bytes(b"not yet")
    old = pa.table({"prompt_id": ["p"], "prompt": ["t"], "method": ["aisp"], "dataset": ["made"], "status": ["ok"]})
    pq.write_table(old, out / "rows" / "part-old.parquet")
    rows = read_rows(str(out))
    assert rows.num_rows == 5
    assert rows["reward"].to_pylist()[-1] is None


def test_no_rows_is_said_with_where_they_were_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no rows in .*/rows/\*\.parquet"):
        read_rows(str(tmp_path))


@pytest.mark.parametrize("kind", ["truncated", "text", "foreign", "newer", "type"])
def test_a_file_that_is_not_of_an_evaluation_is_named_in_one_sentence(tmp_path, kind):
    out = write_output(tmp_path / "o", [made_row("aisp", i, 0) for i in range(4)])
    bad, good = out / "rows" / "part-bad.parquet", out / "rows" / "part-00000.parquet"
    if kind == "truncated":
        bad.write_bytes(good.read_bytes()[:-20])
    elif kind == "text":
        bad.write_text("not Parquet")
    elif kind == "foreign":
        pq.write_table(pa.table({"x": [1]}), bad)
    elif kind == "newer":
        pq.write_table(pq.read_table(good).replace_schema_metadata({"aisp_ray.schema": "99"}), bad)
    else:
        pq.write_table(pa.table({"prompt_id": ["p"], "method": ["m"], "reward": ["high"]}), bad)
    with pytest.raises(ValueError, match=r"part-bad\.parquet") as caught:
        read_rows(str(out))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "summary.json"])
@pytest.mark.parametrize("text", ['{"half', "[]"])
def test_a_broken_manifest_is_named_in_one_sentence(tmp_path, name, text):
    out = write_output(tmp_path / "o", [made_row("aisp", i, 0) for i in range(4)])
    (out / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} is not .*JSON.*restore the file"):
        make_report(str(out))
