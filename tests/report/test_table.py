"""Every number of the table, recomputed from the Parquet files by plain loops."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_rows import made_error, made_row, write_output

from aisp_ray.report.measure import sections
from aisp_ray.report.notices import notices
from aisp_ray.report.page.render import render
from aisp_ray.report.rows import read_rows
from aisp_ray.report.summary import summary_json, summary_table
from aisp_ray.report.tables.cells import table_of, texts
from aisp_ray.report.tables.evaluation import format_table, result_table
from aisp_ray.report.tables.render import csv_text, text
from aisp_ray.results import ROW_SCHEMA
from aisp_ray.rng import generator

METHODS = ("best_of_n", "noise_only", "aisp")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Two seeds; aisp has an error row on prompt 4 in seed 0, noise_only lacks prompt 5."""
    rows = [
        made_row(method, ordinal, seed)
        for seed in (0, 1)
        for method in METHODS
        for ordinal in range(30)
        if (method, ordinal) != ("noise_only", 5) and (method, ordinal, seed) != ("aisp", 4, 0)
    ]
    return write_output(tmp_path_factory.mktemp("table") / "out", [*rows, made_error("aisp", 4, 0)])


@pytest.fixture(scope="module")
def plain(out) -> list[dict]:
    import pandas as pd

    frames = [pd.read_parquet(path) for path in sorted((out / "rows").glob("*.parquet"))]
    return [row for frame in frames for row in frame.to_dict("records")]


@pytest.fixture(scope="module")
def table(out) -> dict[str, dict]:
    records = summary_table(read_rows(str(out)))
    return {row["method"]: row for row in csv.DictReader(io.StringIO(format_table(records, "csv")))}


def per_prompt(rows: list[dict], method: str, value) -> dict[str, float]:
    """A prompt's mean over its seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        number = value(row) if row["method"] == method and row["status"] == "ok" else None
        if number is not None and not math.isnan(number):
            found.setdefault(row["prompt_id"], []).append(number)
    return {prompt: statistics.fmean(numbers) for prompt, numbers in sorted(found.items())}


def interval(values: list[float]) -> tuple[float, float]:
    """Percentile bootstrap by gathering, in prompt order."""
    means = []
    for start in range(0, 10_000, 250):
        draws = generator("bootstrap", 0, len(values), start).integers(0, len(values), size=(250, len(values)))
        means += np.array(values)[draws].mean(axis=1).tolist()
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def judge(name: str):
    def value(row: dict) -> float | None:
        return dict(zip(row["judge_names"], row["judge_rewards"], strict=True)).get(name)

    return value


def tokens(row: dict) -> list[str]:
    return re.findall(r"\w+(?:['’\-]\w+)*|[^\w\s]", row["response"])


def diversity(row: dict, more: int = 0) -> float:
    own = tokens(row)
    grams = [[tuple(own[i : i + n]) for i in range(len(own) - n + 1)] for n in (2, 3, 4)]
    return math.prod(len(set(g)) / (len(g) + more) for g in grams)


@pytest.mark.parametrize("method", METHODS)
def test_means_and_intervals_are_those_of_plain_loops(method, plain, table):
    for column, value in {
        "reward": lambda row: row["reward"],
        "judge_second_opinion": judge("second_opinion"),
        "judge_gold": judge("gold"),
        "diversity": diversity,
        "diversity_plus_one": lambda row: diversity(row, 1),
        "words": lambda row: len(tokens(row)),
    }.items():
        values = list(per_prompt(plain, method, value).values())
        row = table[method]
        assert float(row[column]) == pytest.approx(statistics.fmean(values)), column
        low, high = interval(values)
        assert float(row[f"{column}_low"]) == pytest.approx(low), column
        assert float(row[f"{column}_high"]) == pytest.approx(high), column
        assert int(row[f"{column}_count"]) == len(values), column


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("prefix", ["", "judge_second_opinion_", "judge_gold_"])
def test_differences_pair_prompts_and_seeds_that_both_have(method, prefix, plain, table):
    value = judge(prefix[len("judge_") : -1]) if prefix else lambda row: row["reward"]
    worked = [(row, value(row)) for row in plain if row["status"] == "ok"]
    rewards = {
        (row["method"], row["prompt_id"], row["seed"]): number
        for row, number in worked
        if number is not None and not math.isnan(number)
    }
    pairs: dict[str, list[float]] = {}
    for (name, prompt, seed), reward in rewards.items():
        if name == method and ("best_of_n", prompt, seed) in rewards:
            pairs.setdefault(prompt, []).append(reward - rewards["best_of_n", prompt, seed])
    differences = [statistics.fmean(pairs[prompt]) for prompt in sorted(pairs)]
    row = {name.removeprefix(prefix): cell for name, cell in table[method].items() if name.startswith(prefix)}
    assert float(row["difference"]) == pytest.approx(statistics.fmean(differences))
    low, high = interval(differences)
    assert float(row["difference_low"]) == pytest.approx(low)
    assert float(row["difference_high"]) == pytest.approx(high)
    counts = [sum(d > 0 for d in differences), sum(d == 0 for d in differences), sum(d < 0 for d in differences)]
    assert [int(row[name]) for name in ("wins", "ties", "losses")] == counts
    assert sum(counts) == int(row["difference_count"])
    assert sum(counts) == (29 if method == "noise_only" else 30) - (3 if prefix == "judge_gold_" else 0)
    assert float(row["win_rate"]) == pytest.approx((counts[0] + counts[1] / 2) / sum(counts))


@pytest.mark.parametrize("method", METHODS)
def test_the_ledger_is_the_mean_over_rows_that_worked(method, plain, table):
    rows = [row for row in plain if row["method"] == method]
    worked = [row for row in rows if row["status"] == "ok"]
    for name in ("num_samples", "num_generated_tokens", "policy_seconds", "reward_seconds", "wall_seconds"):
        assert float(table[method][name]) == pytest.approx(statistics.fmean(row[name] for row in worked)), name
    assert int(table[method]["num_rows"]) == len(rows)
    assert int(table[method]["num_errors"]) == len(rows) - len(worked)
    assert int(table[method]["num_seeds"]) == 2


def test_the_baseline_leads_and_has_no_difference(out):
    records = summary_table(read_rows(str(out)), baseline="aisp")
    assert [record.method for record in records] == ["aisp", "best_of_n", "noise_only"]
    assert records[0].paired is None
    assert records[1].paired.difference.mean < 0


def test_a_missing_baseline_is_said_and_not_made_up(out):
    records = summary_table(read_rows(str(out)), baseline="nobody")
    assert all(record.paired is None for record in records)
    text = format_table(records)
    assert "no rows of the baseline nobody" in text
    assert "win/tie/loss" not in text


def test_the_text_fits_a_terminal_and_the_other_styles_hold_the_same_cells(out):
    records = summary_table(read_rows(str(out)))
    shown = format_table(records)
    assert max(map(len, shown.splitlines())) <= 80
    assert "30 (1 err)" in shown
    assert "95 % bootstrap" in shown
    assert "\x1b" not in shown, "no colours where there is no terminal"
    reward = f"{records[0].reward.mean:.2f} ± {records[0].reward.half_width:.2f}"
    assert reward in shown
    assert reward in format_table(records, "markdown")
    latex = format_table(records, "latex")
    assert reward.replace("±", r"\pm") in latex
    assert r"best\_of\_n" in latex
    with pytest.raises(ValueError, match="text, markdown, latex, csv"):
        format_table(records, "html")


def test_what_is_unknown_is_empty_in_every_form():
    rows = [made_error("best_of_n", i, 0) for i in range(3)]
    records = summary_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA))
    (row,) = csv.DictReader(io.StringIO(format_table(records, "csv")))
    assert row["reward"] == row["num_samples"] == row["wall_seconds"] == row["diversity"] == ""
    assert row["num_errors"] == "3"
    assert summary_json(records)[0]["reward"]["mean"] is None
    assert "nan" not in format_table(records).lower()


def test_no_shared_prompt_is_no_record_of_wins(tmp_path):
    rows = [made_row("best_of_n", i, 0) for i in range(3)] + [made_row("aisp", i, 0) for i in range(3, 6)]
    rows += [made_row("noise_only", i, 0) for i in range(3)]
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    records = summary_table(table)
    for style in ("text", "markdown", "latex"):
        assert "0/0/0" not in format_table(records, style)
    cells = {row["method"]: row for row in csv.DictReader(io.StringIO(format_table(records, "csv")))}
    for prefix in ("", "judge_gold_"):
        assert [cells["aisp"][f"{prefix}{name}"] for name in ("wins", "ties", "losses", "win_rate")] == [""] * 4
        assert cells["noise_only"][f"{prefix}wins"] != ""
    page = render(sections(table, {}), {}, {}, [], {})
    assert "0/0/0" not in page
    assert "Held-out judges" in page


def test_two_datasets_are_two_tables(tmp_path):
    rows = [made_row("best_of_n", i, 0) for i in range(4)]
    other = [made_row("best_of_n", i, 0) | {"dataset": "other", "prompt_id": f"other/test/{i}"} for i in range(6)]
    records = summary_table(read_rows(str(write_output(tmp_path / "o", rows + other))))
    assert [(record.dataset, record.num_prompts) for record in records] == [("made", 4), ("other", 6)]
    assert len(format_table(records).split("method  ")) >= 3


def test_few_prompts_colour_nothing_and_say_so(tmp_path):
    from aisp_ray.report.tables.cells import FEW, tone_of

    for prompts, tone in ((FEW - 1, ""), (FEW, "better")):
        rows = [made_row("best_of_n", i, 0) for i in range(prompts)]
        rows += [row | {"method": "aisp", "reward": row["reward"] + 1 + 0.01 * i} for i, row in enumerate(rows)]
        (section,) = sections(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), {})
        assert tone_of(section.records[1].paired.difference) == tone
        page = render([section], {}, {}, [], {})
        assert ('<td class="better">' in page) == bool(tone)
        assert any("intervals are rough" in text for text in notices([section], {})) == (not tone)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_column_is_lost(out, width):
    records = summary_table(read_rows(str(out)))
    table = result_table(records)
    shown = text(table, width)
    assert max(map(len, shown.splitlines())) <= width
    if width >= 80:
        for row in table.rows:
            assert all(cell.text in shown for cell in row)


def test_names_cannot_steer_the_terminal():
    table = table_of("\x1b]0;owned\x07 title", [texts("method", ["\x1b[31mred"]), texts("x", ["1"])])
    assert "\x1b" not in text(table)
    assert "\x07" not in text(table)
    assert r"\x1b[31mred" in text(table)
    assert "\x1b[1m" in text(table, colour=True), "colours where they are wanted"


@pytest.mark.parametrize("name", ["=1+1", "+cmd|x", "-2+3", "@SUM(A1)", "\tx"])
def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers(name):
    rows = list(csv.reader(io.StringIO(csv_text(["a", name], [{"a": name, name: -0.5}, {"a": "-1.5e3", name: None}]))))
    assert rows == [["a", f"'{name}"], [f"'{name}", "-0.5"], ["-1.5e3", ""]]


@pytest.mark.parametrize("value", ["\r=1", "a\rb", "\x1b[31mred\x07", "\r\n@x", "\x00-1+1"])
def test_no_control_character_ends_a_row_of_a_csv_or_steers_who_prints_it(value):
    rows = list(csv.reader(io.StringIO(csv_text(["a", "b"], [{"a": value, "b": 1}]), newline="")))
    assert len(rows) == 2
    assert rows[1][1] == "1"
    assert not {"\r", "\x1b", "\x07", "\x00"} & set(rows[1][0])
    assert not rows[1][0].startswith(("=", "+", "-", "@"))
