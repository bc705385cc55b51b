"""A search as a part of the report: its numbers, unfinished ones, hostile texts, several and mixed outputs."""

import csv
import html
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tune_world import PEAK, FakePolicy, make, run

from aisp_ray.commands.report import main
from aisp_ray.metrics.base import estimate
from aisp_ray.report.rejudge import Rejudging
from aisp_ray.report.searches import find_searches, read_search
from aisp_ray.report.write import make_report
from aisp_ray.rng import generator
from aisp_ray.types import Rollout, Rollouts

sys.path.append(str(Path(__file__).parent.parent / "report"))  # helpers of the report's tests

GRID = ("tune.keys={temperature: [0.3, 0.6, 0.9, 1.2], top_p: [0.9, 1.0]}", "tune.set={n: 2}", "search=grid", "limit=6")


class UnevenPolicy(FakePolicy):
    """Every prompt has a best temperature of its own, so gains differ by prompt."""

    async def rollout(self, prompt, proposal, seed):
        drawn = await super().rollout(prompt, proposal, seed)
        peak = PEAK * math.exp(generator(prompt.prompt_id, "peak").normal())
        gap = 0.2 * math.log(proposal.sampling.temperature / peak) ** 2
        items = tuple(Rollout(i, repr(float(r.text) - gap), (1, 2), "stop", 2) for i, r in enumerate(drawn.items))
        return Rollouts(drawn.iteration, items, 3, seconds=0.5)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of a report's time; these tests are about the rest."""
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    monkeypatch.setattr("aisp_ray.report.figures.search.panels", lambda rows, sweep: ())


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("searched") / "out"
    words = ("tune.keys={temperature: {low: 0.1, high: 3.0, log: true}, select: [best, soft]}", "tune.set={n: 2}")
    assert run(make(out, *words, "trials=14", "limit=12", "batch=4"), UnevenPolicy())[0] == 0
    return out


def tables_of(page):
    """Heading -> rows of cells as texts, of every table under an h3."""
    found = {}
    for title, body in re.findall(r"<h3>([^<]*)</h3>\s*<div[^>]*>\s*<table[^>]*>(.*?)</table>", page, re.DOTALL):
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
        found[html.unescape(title)] = [
            [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in rows
        ]
    return found


def with_interval(values, sign=""):
    found = estimate(values)
    text = f"{found.mean:{sign}z.3f} [{found.low:z.3f}, {found.high:z.3f}]"
    return text.replace("-", "\u2212")


def rewards_of(rows, setting, ids):
    by_id = {row["prompt_id"]: row["reward"] for row in rows if row["setting"] == setting}
    return [by_id[prompt_id] for prompt_id in ids]


def test_every_number_of_the_trials_is_recomputed_from_the_evaluations(searched, no_figures):
    page = Path(make_report(str(searched)).page).read_text()
    evaluations = pq.read_table(searched / "evaluations").to_pylist()
    ids = json.loads((searched / "manifest.json").read_text())["prompts"]["tuning"]
    trials = {row["trial"]: row for row in pq.read_table(searched / "trials.parquet").to_pylist()}
    head, *lines = tables_of(page)["Trials"]
    assert head[:6] == ["trial", "state", "temperature", "select", "prompts", "reward"]
    assert len(lines) == len(trials) == 15
    assert {trials[int(line[0])]["state"] for line in lines} == {"complete", "stopped", "invalid"}
    preset = rewards_of(evaluations, trials[0]["setting"], ids)
    for line in lines:
        trial = trials[int(line[0])]
        assert line[2] == f"{trial['key.temperature']:.4g}"
        assert line[3] == json.loads(trial["key.select"])
        if trial["state"] == "invalid":
            assert line[4] == trial["reason"]
            continue
        seen = ids[: trial["num_prompts"]]
        rewards = rewards_of(evaluations, trial["setting"], seen)
        gains = [own - other for own, other in zip(rewards, preset, strict=False)]
        assert line[4:6] == [str(len(seen)), with_interval(rewards)]
        assert line[6] == (with_interval(gains, "+") if trial["trial"] else "")
        spent = [row for row in evaluations if row["setting"] == trial["setting"] and row["prompt_id"] in seen]
        names = ("num_samples", "num_generated_tokens", "num_reward_calls")
        assert line[7:10] == [f"{sum(row[name] for row in spent):,}" for name in names]
        names = ("policy_seconds", "reward_seconds")
        assert line[10:] == [f"{sum(row[name] for row in spent):,.1f}" for name in names]


def test_the_confirmation_is_recomputed_from_the_evaluations(searched, no_figures):
    page = Path(make_report(str(searched)).page).read_text()
    evaluations = pq.read_table(searched / "evaluations").to_pylist()
    ids = json.loads((searched / "manifest.json").read_text())["prompts"]
    trials = pq.read_table(searched / "trials.parquet").to_pylist()
    best = max((row for row in trials if row["state"] == "complete"), key=lambda row: row["value"])
    (title,) = (title for title in tables_of(page) if title.startswith("Chosen"))
    assert title == f"Chosen: temperature={best['key.temperature']:.4g} select=best"
    head, *lines = tables_of(page)[title]
    assert head == ["reward", "12 tuning prompts", "8 held-out prompts"]
    for at, part in ((1, "tuning"), (2, "heldout")):
        preset, chosen = (rewards_of(evaluations, row["setting"], ids[part]) for row in (trials[0], best))
        gains = [a - b for a, b in zip(chosen, preset, strict=True)]
        expected = [with_interval(preset), with_interval(chosen), with_interval(gains, "+")]
        assert [line[at] for line in lines] == expected
    assert html.escape((searched / "best.yaml").read_text()) in page
    luck = trials[best["trial"]]["gain"] - sum(gains) / len(gains)
    assert f"luck of the choice): {luck:+.3f}." in page


def test_presets_and_chosen_settings_stand_side_by_side_on_held_out_prompts(searched, no_figures):
    report = make_report(str(searched))
    evaluations = pq.read_table(searched / "evaluations").to_pylist()
    ids = json.loads((searched / "manifest.json").read_text())["prompts"]["heldout"]
    (search,) = report.searches
    preset, chosen = report.records
    assert (preset.dataset, preset.method, preset.num_prompts) == ("heldout, held-out prompts", "best_of_n (preset)", 8)
    rewards = [rewards_of(evaluations, row["setting"], ids) for row in (search.trials[0], search.best)]
    assert preset.reward.mean == pytest.approx(sum(rewards[0]) / 8)
    assert chosen.reward.mean == pytest.approx(sum(rewards[1]) / 8)
    assert chosen.paired.difference == search.confirmation("heldout").gain


def test_the_trials_as_csv_are_those_of_the_parquet(searched, no_figures):
    report = make_report(str(searched))
    with open(Path(report.to) / "trials.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = pq.read_table(searched / "trials.parquet").to_pylist()
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert {key: "" if value is None else str(value) for key, value in row.items()} == line
    told = json.loads((Path(report.to) / "summary.json").read_text())["searches"]
    assert told[0]["heldout"] == json.loads((searched / "summary.json").read_text())["heldout"]


def test_figures_are_in_the_page_and_beside_it(searched, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    report = make_report(str(searched))
    page = Path(report.page).read_text()
    names = {path.name for path in (Path(report.to) / "figures").iterdir()}
    names_of = ("gain_temperature", "value_temperature", "progress")
    assert names == {f"search_{name}.{kind}" for name in names_of for kind in ("svg", "png")}
    part = page[page.index('<div class="figures"') :]
    assert part.count("<svg") == 3
    assert part.count("currentColor") > 3
    ids = re.findall(r'id="([^"]*)"', part)
    assert len(ids) == len(set(ids))


def test_a_search_that_was_stopped_has_a_page(tmp_path, no_figures):
    plan = make(tmp_path, "trials=12", "limit=16", "stop=halving", "batch=4")
    assert run(plan, FakePolicy(90))[0] == 1
    report = make_report(str(tmp_path))
    (search,) = report.searches
    assert not search.finished
    page = Path(report.page).read_text()
    assert "it has not ended" in report.notices[0]
    assert "Best so far: " in page
    assert "Nothing has been chosen" in page
    shown = tables_of(page)["Trials"][1:]
    assert len(shown) == len(search.trials) > 4
    assert {record.dataset for record in report.records} == {"tuning, tuning prompts"}
    assert not [title for title in tables_of(page) if title.startswith("Chosen")]


def test_a_search_that_has_just_begun_has_a_page(tmp_path, no_figures):
    plan = make(tmp_path, "trials=12", "limit=16")
    assert run(plan, FakePolicy(20))[0] == 1
    assert not (tmp_path / "trials.parquet").exists()
    report = make_report(str(tmp_path))
    page = Path(report.page).read_text()
    count = pq.read_table(tmp_path / "evaluations").num_rows
    assert f"No trial is complete yet; {count} evaluations" in page
    assert report.records == []
    assert "<section hidden>" in page


def test_what_an_earlier_smaller_search_chose_is_not_shown_as_the_choice(tmp_path, no_figures):
    run(make(tmp_path, "trials=4", "limit=8"))
    assert read_search(str(tmp_path)).finished
    assert run(make(tmp_path, "trials=12", "limit=8", "stop=none"), FakePolicy(60))[0] == 1
    search = read_search(str(tmp_path))
    assert (tmp_path / "summary.json").exists()
    assert not search.finished
    page = Path(make_report(str(tmp_path)).page).read_text()
    assert "best.yaml" not in tables_of(page)
    assert not [title for title in tables_of(page) if title.startswith("Chosen")]


def test_a_search_without_held_out_prompts_says_so(tmp_path, no_figures):
    run(make(tmp_path, "trials=6", "limit=8", "heldout_limit=0"), UnevenPolicy(), heldout=[])
    report = make_report(str(tmp_path))
    assert "a part of its gain is luck" in report.notices[0]
    page = Path(report.page).read_text()
    (title,) = (title for title in tables_of(page) if title.startswith("Chosen"))
    assert tables_of(page)[title][0] == ["reward", "8 tuning prompts"]
    assert "Not measured on held-out prompts" in page


def test_a_search_whose_preset_stays_says_so(tmp_path, no_figures):
    run(make(tmp_path, "tune.keys={temperature: [0.2, 2.5]}", "tune.set={n: 2, top_p: 1.0}", "search=grid", "limit=4"))
    report = make_report(str(tmp_path))
    page = Path(report.page).read_text()
    assert "Chosen: the preset itself" in page
    assert "No setting did better than the preset." in page
    assert [record.method for record in report.records] == ["best_of_n (preset)"]


def test_texts_of_people_stay_texts(tmp_path):
    hostile = "<img src=x onerror=alert(1)> $\\frac$"
    out = tmp_path / "<b>bold"
    keys = json.dumps({"temperature": [0.3, 0.6], "select": ["best", hostile]})
    run(make(out, f"tune.keys={keys}", "tune.set={n: 2}", "search=grid", "limit=4"))
    table = pq.read_table(out / "trials.parquet")
    at = table.schema.get_field_index("key.select")
    texts = [json.dumps(hostile if i % 2 else "best") for i in range(table.num_rows)]
    states = ["complete"] * table.num_rows  # as if a method took such a value: it is in figures too
    table = table.set_column(at, "key.select", [texts])
    table = table.set_column(table.schema.get_field_index("state"), "state", [states])
    values = [-0.1 * i for i in range(table.num_rows)]
    for name in ("value", "gain"):
        table = table.set_column(table.schema.get_field_index(name), name, [values])
    pq.write_table(table, out / "trials.parquet")
    (out / "best.yaml").write_text(f"# {hostile}\n")
    report = make_report(str(out))
    page = Path(report.page).read_text()
    assert "<img" not in page
    assert "<b>bold" not in page
    assert html.escape(hostile) in page
    assert (Path(report.to) / "figures" / "search_gain_select.svg").read_text().count("&lt;img src=x") >= 1


def test_an_evaluation_and_searches_share_a_page(tmp_path, no_figures):
    from made_rows import made_row, write_output

    rows = [made_row(method, i, 0) for method in ("best_of_n", "aisp") for i in range(6)]
    evaluated = write_output(tmp_path / "evaluated", rows)
    run(make(tmp_path / "a", *GRID), UnevenPolicy())
    run(make(tmp_path / "b", "trials=5", "limit=6"), UnevenPolicy())
    outs = [str(tmp_path / name) for name in ("evaluated", "a", "b")]
    report = make_report(outs)
    assert report.to == f"{evaluated}/report"
    page = Path(report.page).read_text()
    order = [page.index(text) for text in ("<h2>made", "<h2>Search of best_of_n over temperature, top_p", "<h2>Pres")]
    assert order == sorted(order)
    compared = [record for record in report.records if record.dataset != "made"]
    assert len([record for record in report.records if record.dataset == "made"]) == 2
    # the presets differ in top_p, so they are two lines; all are compared with the first on the same prompts
    assert [record.method for record in compared[:1]] == ["best_of_n (preset) of a"]
    assert "best_of_n (preset) of b" in {record.method for record in compared}
    assert all(record.paired.difference.count == 8 for record in compared[1:])
    names = {path.name for path in Path(report.to).iterdir()}
    assert {"search0_trials.csv", "search1_trials.csv"} <= names


def test_searches_of_earlier_versions_are_read_too(tmp_path, no_figures):
    run(make(tmp_path, "trials=5", "limit=6"), UnevenPolicy())
    table = pq.read_table(tmp_path / "trials.parquet").drop_columns(["setting"])
    pq.write_table(table, tmp_path / "trials.parquet")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({"fingerprint": manifest["fingerprint"]}))
    report = make_report(str(tmp_path))
    assert report.records == []
    assert len(tables_of(Path(report.page).read_text())["Trials"]) == 7


def test_the_command_says_what_was_chosen_and_where_the_page_is(searched, no_figures, capsys):
    assert main([f"out={searched}"]) == 0
    shown = capsys.readouterr().out
    assert "search of best_of_n over temperature, select" in shown
    assert "luck of the choice" in shown
    assert f"{searched}/report/index.html" in shown


def test_judges_score_what_was_chosen(searched, no_figures):
    from test_rejudge import SEEN, CountWords

    def judged(compare_with):
        judges = {"count": CountWords(compare_with=compare_with)}
        report = make_report(str(searched), f"{searched}/judged", rejudging=Rejudging(judges=judges))
        return [record.judges["count"].mean for record in report.records]

    SEEN.clear()
    assert judged(None) == [1.0, 1.0]
    assert {request.prompt.prompt_id for request in SEEN} == {f"heldout/test/{i:08d}" for i in range(8)}
    assert judged("baseline") == [0.0, 0.0], "the preset's responses are what comparing judges get"


def test_what_has_no_effect_on_a_search_is_refused(searched, capsys):
    assert main([f"out={searched}", "methods=[aisp]"]) == 2
    assert "methods=['aisp'] has no effect" in capsys.readouterr().err


def test_outputs_without_a_search_are_none(tmp_path):
    assert find_searches([str(tmp_path), str(tmp_path / "nowhere")]) == {}


@pytest.mark.slow
def test_the_page_opens_in_a_browser(searched, tmp_path):
    pytest.importorskip("aiohttp", reason="aiohttp drives the browser")
    from chromium import browse, find

    if find() is None:
        pytest.skip("no Chromium or Chrome is installed")
    out = tmp_path / "out"
    shutil.copytree(searched, out)
    page = make_report(str(out)).page

    async def visit(tab):
        await tab.until("document.body?.dataset.ready === 'true'")
        assert await tab.evaluate("document.querySelectorAll('.tall tbody tr').length") == 15
        assert await tab.evaluate("document.querySelectorAll('.chosen').length") == 1
        cards = await tab.evaluate("document.querySelectorAll('.card').length")
        assert cards == 2
        seen = []
        for theme in ("light", "dark"):
            await tab.evaluate(f"document.documentElement.dataset.theme = {theme!r}")
            seen.append(await tab.evaluate("getComputedStyle(document.querySelector('.chosen td')).backgroundColor"))
        assert seen[0] != seen[1]
        assert [one for one in tab.requests if not one.startswith(("file:", "data:", "blob:"))] == []
        assert tab.problems == []

    browse(Path(page).as_uri(), visit, tmp_path)
