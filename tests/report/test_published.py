import json
from pathlib import Path

import pytest
from made_rows import made_row, write_output

from aisp_ray.report.measure import sections
from aisp_ray.report.rows import read_labelled
from aisp_ray.report.tables.evaluation import published
from aisp_ray.report.tables.render import text
from aisp_ray.report.write import make_report

PUBLISHED = {
    "source": "Somebody, Table 1",
    "best_of_n": {"reward": 8.70, "reward_pm": 0.11, "diversity": 0.688, "diversity_plus_one": 0.6},
    "aisp": {"reward": 9.09, "norm": 2631.7, "kl": 303.9},
    "misvo": {"reward": 9.29},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    rows = [made_row(method, ordinal, 0) for method in ("best_of_n", "aisp") for ordinal in range(12)]
    made = write_output(tmp_path_factory.mktemp("published") / "out", rows)
    manifest = {"fingerprint": {"method": {"best_of_n": {}, "aisp": {}}}, "config": {"published": PUBLISHED}}
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def compared(outs, given=PUBLISHED):
    (section,) = sections(*read_labelled(outs))
    return published(section, {"config": {"published": given}})


def lines(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_published_figures_stand_beside_ours_and_what_is_unknown_is_a_dash(out):
    (section,) = sections(*read_labelled(str(out)))
    records = {record.method: record for record in section.records}
    found = compared(str(out))
    assert found.heads[:3] == ("method", "reward published", "reward ours")
    first, second = lines(found)  # no line for a method that was not run
    assert first[:2] == ["best_of_n", "8.70 ± 0.11"]
    assert first[2].startswith(f"{records['best_of_n'].reward.mean:.2f} ± ")
    assert first[3] == "0.688"
    assert first[4].startswith(f"{records['best_of_n'].metrics['diversity'].mean:.3f}")
    assert first[6].startswith(f"{records['best_of_n'].metrics['diversity_plus_one'].mean:.3f}")
    assert first[4] != first[6], "a published diversity is compared with the form that its name says"
    assert second[:2] == ["aisp", "9.09"]
    assert second[3] == "-"
    assert "Somebody, Table 1" in text(found)


def test_published_norms_and_divergences_stand_beside_the_last_values_of_the_traces(out):
    head, (_, second) = compared(str(out)).heads, lines(compared(str(out)))
    assert head[7:] == ("norm published", "norm ours", "kl published", "kl ours")
    rows = [made_row("aisp", ordinal, 0) for ordinal in range(12)]
    norm = sum(row["control_norm"][-1] for row in rows) / 12
    kl = sum(json.loads(row["extra"])["kl"][-1] for row in rows) / 12
    assert second[7] == "2631.7"
    assert second[8].startswith(f"{norm:.1f} ± ")
    assert second[9] == "303.9"
    assert second[10].startswith(f"{kl:.1f} ± ")


def test_a_divergence_on_other_prefixes_than_published_says_so(tmp_path):
    rows = [made_row("aisp", i, 0) | {"extra": json.dumps({"kl_token_steered": [1.0, 2.0]})} for i in range(3)]
    found = compared(str(write_output(tmp_path / "o", rows)))
    assert "kl ours (token_steered)" in found.heads
    assert lines(found)[0][-1] == "2.0"


def test_each_setting_of_a_method_has_its_own_line_by_its_label(tmp_path):
    outs = []
    for sigma in (0.3, 0.7):
        rows = [made_row("aisp", i, 0) | {"reward": sigma} for i in range(3)]
        config = {"method": {"aisp": {"sigma": sigma}}}
        outs.append(write_output(tmp_path / f"s{sigma}", rows, config))
    found = lines(compared([str(out) for out in outs]))
    assert [line[:2] for line in found] == [["aisp sigma=0.3", "9.09"], ["aisp sigma=0.7", "9.09"]]
    assert [line[2] for line in found] == ["0.30", "0.70"]


def test_the_report_and_the_page_show_them(out, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    report = make_report(str(out))
    assert "| method | reward published | reward ours |" in (out / "report" / "published.md").read_text()
    assert "<h3>Published</h3>" in Path(report.page).read_text(encoding="utf-8")


def test_without_published_figures_there_is_nothing_to_show(out):
    assert compared(str(out), {}) is None
    assert compared(str(out), {"source": "x", "other": {"reward": 1.0}}) is None
