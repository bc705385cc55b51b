"""Reading outputs: several at once, unfinished ones, and what a line of the table is called."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_rows import made_row, write_output

from aisp_ray.report.rows import read_rows


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
