import json
from pathlib import Path

import pytest
from made_rows import made_row, write_output

from aisp_ray.report.published import as_text, compare
from aisp_ray.report.rows import read_rows
from aisp_ray.report.table import summary_table
from aisp_ray.report.write import make_report

PUBLISHED = {
    "source": "Somebody, Table 1",
    "best_of_n": {"reward": 8.70, "reward_pm": 0.11, "diversity": 0.688, "kl": 4.5},
    "aisp": {"reward": 9.09},
    "misvo": {"reward": 9.29},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    rows = [made_row(method, ordinal, 0) for method in ("best_of_n", "aisp") for ordinal in range(12)]
    made = write_output(tmp_path_factory.mktemp("published") / "out", rows)
    manifest = {"fingerprint": {"method": {"best_of_n": {}, "aisp": {}}}, "config": {"published": PUBLISHED}}
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def test_published_figures_stand_beside_ours_and_what_is_unknown_is_a_dash(out):
    records = {record.method: record for record in summary_table(read_rows(str(out)))}
    found = compare(list(records.values()), {"config": {"published": PUBLISHED}})
    assert found.heads[:3] == ("method", "reward published", "reward ours")
    first, second = found.lines  # no line for a method that was not run
    assert first[:2] == ("best_of_n", "8.70 ± 0.11")
    assert first[2].startswith(f"{records['best_of_n'].reward.mean:.2f} ± ")
    assert first[3] == "0.688"
    assert first[4].startswith(f"{records['best_of_n'].metrics['diversity_plus_one'].mean:.3f}")
    assert first[5:] == ("4.5", "-")
    assert second[:2] == ("aisp", "9.09")
    assert second[3] == "-"
    assert "Somebody, Table 1" in as_text(found)


def test_each_setting_of_a_method_has_its_own_line_by_its_label(tmp_path):
    outs = []
    for sigma in (0.3, 0.7):
        rows = [made_row("aisp", i, 0) | {"reward": sigma} for i in range(3)]
        config = {"method": {"aisp": {"sigma": sigma}}}
        outs.append(write_output(tmp_path / f"s{sigma}", rows, config))
    found = compare(summary_table(read_rows(outs)), {"config": {"published": PUBLISHED}})
    assert [line[:2] for line in found.lines] == [("aisp sigma=0.3", "9.09"), ("aisp sigma=0.7", "9.09")]
    assert [line[2] for line in found.lines] == ["0.30", "0.70"]


def test_the_report_and_the_page_show_them(out, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.DRAWINGS", ())
    report = make_report(str(out))
    assert "| method | reward published | reward ours |" in (out / "report" / "published.md").read_text()
    assert "<h3>Published</h3>" in Path(report.page).read_text(encoding="utf-8")


def test_without_published_figures_there_is_nothing_to_show(out):
    records = summary_table(read_rows(str(out)))
    assert compare(records, {}) is None
    assert compare(records, {"config": {"published": {"source": "x", "other": {"reward": 1.0}}}}) is None
