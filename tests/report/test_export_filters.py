"""What an export leaves out and counts, its control, its splits, its card, and how it goes to the hub."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fake_hub import fake_hub
from made_rows import made_particles, made_row, write_output

from aisp_ray.commands.export import main
from aisp_ray.metrics._words import words
from aisp_ray.report.export.licences import licence_of
from aisp_ray.report.export.run import Exported, export
from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.export.similar import SeenTexts, jaccard
from aisp_ray.rng import generator

SHARES = {"made": 0.75, "other": 0.25}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> str:
    """40 prompts of two datasets, half of the responses cut, every fifth prompt nearly the one before it."""
    rows = [made_row("aisp", ordinal, 0) for ordinal in range(40)]
    drawn = [row for ordinal in range(40) for row in made_particles("aisp", ordinal, 0)]
    for row in rows:
        row["dataset"] = "other" if row["ordinal"] % 4 == 3 else "made"
        if row["ordinal"] % 5 == 4:
            row["prompt"] = rows[row["ordinal"] - 1]["prompt"].replace("?", " ?!")
    for row in drawn:
        row["finish_reason"] = "length" if row["particle"] % 2 else "stop"
    return str(write_output(tmp_path_factory.mktemp("filters") / "out", rows, {"seed": 3}, drawn))


def run(out: str, to: Path, **keys) -> tuple[Exported, list[dict]]:
    keys = {"messages": False, **keys}
    made = export(ExportSettings(out=(out,), to=str(to), **keys))
    return made, table(to)


def table(to: Path, folder: str = "data") -> list[dict]:
    return pa.concat_tables(pq.read_table(path) for path in sorted((to / folder).glob("*.parquet"))).to_pylist()


FILTERS = [
    {"min_margin": 3.0},
    {"max_margin": 3.0},
    {"length_ratio": 1.0, "pairs": 3},
    {"min_reward": 1.6},
    {"prompt_similarity": 0.7},
    {"response_similarity": 0.3},
    {"format": "candidates", "response_similarity": 0.3},
    {"shares": {"made": 0.5, "other": 0.5}},
    {"top_k_overall": 7},
    {"format": "sft", "top_k_overall": 7, "shares": {"made": 0.4, "other": 0.6}},
    {"min_margin": 2.5, "min_words": 5, "max_words": 11, "prompt_similarity": 0.7, "top_k_overall": 4},
]


@pytest.mark.parametrize("keys", FILTERS, ids=lambda keys: "-".join(keys))
def test_what_filters_drop_and_what_is_left_is_what_was_made(out, tmp_path, keys):
    made, rows = run(out, tmp_path / "to", **keys)
    assert made.drops.num_made == len(rows) + sum(made.drops.rows.values())
    named = {**made.drops.rows, **made.drops.responses}
    for key in keys.keys() - {"pairs", "format"}:
        assert named[key] > 0, key
    card = (tmp_path / "to" / "README.md").read_text()
    for name, count in made.drops.rows.items():
        assert f"- {name}: {count:,} rows dropped" in card


def test_pairs_are_matched_in_length_with_the_worst_response_that_fits(out, tmp_path):
    _, rows = run(out, tmp_path / "to", length_ratio=1.2)
    by_id = {row["prompt_id"]: row for row in rows}
    assert len(by_id) > 30
    for ordinal in range(40):
        usable = [r for r in made_particles("aisp", ordinal, 0) if r["reward"] is not None and r["particle"] % 2 == 0]
        ranked = sorted(usable, key=lambda r: -r["reward"])
        best, low = ranked[0], ranked[::-1][: len(ranked) // 2]
        length = len(words(best["response"]))
        fits = [r for r in low if max(length, n := len(words(r["response"]))) <= 1.2 * min(length, n)]
        found = by_id.get(f"made/test/{ordinal:08d}")
        assert (found and (found["chosen"], found["rejected"])) == (
            (best["response"], fits[0]["response"]) if fits else None
        )


def test_length_bounds_hold_for_both_responses(out, tmp_path):
    _, rows = run(out, tmp_path / "to", min_words=6, max_words=10)
    assert rows
    assert all(6 <= len(words(row[name])) <= 10 for row in rows for name in ("chosen", "rejected"))


def test_near_duplicates_are_those_of_the_exact_similarity():
    draw = generator("near duplicates")
    letters = list("abcdefghijklmnopqrstuvwxyz ")
    texts = ["".join(draw.choice(letters, 200)) for _ in range(30)]
    texts += [text[:100] + "".join(draw.choice(letters, 6)) + text[106:] for text in texts]  # about 0.9 similar
    texts += [text[:100] + "".join(draw.choice(letters, 100)) for text in texts[:30]]  # about a third
    seen, threshold = SeenTexts(0.6), 0.6
    kept: list[str] = []
    for text in texts:
        exact = max((jaccard(text, other) for other in kept), default=0.0)
        assert abs(exact - threshold) > 0.15  # an estimate from 128 hashes tells such texts apart
        sketch = seen.sketch(text)
        assert seen.holds(sketch) == (exact >= threshold)
        if exact < threshold:
            kept.append(text)
            seen.add(sketch)
    assert len(kept) == 60


@pytest.mark.parametrize("text", ["", "a", "日本語のとても短い文です", "x" * 3000])
def test_any_text_is_its_own_near_duplicate(text):
    seen = SeenTexts(0.9)
    assert not seen.holds(seen.sketch(text))
    seen.add(seen.sketch(text))
    assert seen.holds(seen.sketch(text.upper() + "  "))


def test_the_same_prompts_of_another_output_are_near_duplicates(out, tmp_path):
    rows = [made_row("aisp", ordinal, 0) for ordinal in range(10)]
    twin = str(
        write_output(tmp_path / "twin", rows, None, [r for i in range(10) for r in made_particles("aisp", i, 0)])
    )
    settings = ExportSettings(out=(out, twin), to=str(tmp_path / "to"), prompt_similarity=1.0)
    made = export(settings)
    assert made.drops.num_prompts == 50
    assert len({json.dumps(row["prompt"]) for row in table(tmp_path / "to")}) == sum(made.rows.values())


def test_several_rows_of_one_prompt_are_not_duplicates_of_each_other(out, tmp_path):
    _, rows = run(out, tmp_path / "to", pairs=3, prompt_similarity=0.7)
    assert set(Counter(row["prompt_id"] for row in rows).values()) == {3}


def test_the_best_overall_are_the_largest_margins_in_input_order(out, tmp_path):
    _, every = run(out, tmp_path / "all")
    _, rows = run(out, tmp_path / "to", top_k_overall=9)
    margin = {row["prompt_id"]: row["reward_chosen"] - row["reward_rejected"] for row in every}
    best = sorted(margin, key=lambda name: -margin[name])[:9]
    assert [row["prompt_id"] for row in rows] == sorted(best)


def test_each_dataset_has_its_share_of_the_largest_such_set(out, tmp_path):
    _, rows = run(out, tmp_path / "a", shares={"made": 0.5, "other": 0.5})
    assert Counter(row["dataset"] for row in rows) == {"made": 10, "other": 10}
    _, rows = run(out, tmp_path / "b", shares=SHARES, top_k_overall=12)
    assert Counter(row["dataset"] for row in rows) == {"made": 9, "other": 3}


def test_the_control_is_as_many_random_rows_of_each_split_without_filters(out, tmp_path):
    keys = {"top_k_overall": 12, "min_margin": 1.0, "test_share": 0.3, "validation_share": 0.2}
    made, rows = run(out, tmp_path / "to", **keys, control=True)
    assert made.control == made.rows
    assert set(made.rows) == {"train", "validation", "test"}
    _, every = run(out, tmp_path / "all", test_share=0.3, validation_share=0.2)
    control = table(tmp_path / "to", "control")
    assert all(row in every for row in control)
    assert control != rows
    run(out, tmp_path / "again", **keys, control=True)
    assert table(tmp_path / "again", "control") == control
    run(out, tmp_path / "other", **keys, control=True, seed=1)
    assert table(tmp_path / "other", "control") != control


def test_datasets_reads_the_control_as_a_configuration(out, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made, _ = run(out, tmp_path / "to", control=True, min_margin=3.0)
    assert len(datasets.load_dataset(str(tmp_path / "to"), split="train")) == made.rows["train"]
    found = datasets.load_dataset(str(tmp_path / "to"), "control")
    assert {name: len(rows) for name, rows in found.items()} == made.control
    run(out, tmp_path / "to", min_margin=3.0)
    assert not list((tmp_path / "to" / "control").iterdir())


def test_a_share_of_a_dataset_that_is_not_there_is_refused(out, tmp_path):
    with pytest.raises(ValueError, match=r"shares\.shp: no row of that dataset is left; the rows are of made, other"):
        run(out, tmp_path / "to", shares={"shp": 0.5, "made": 0.5})


def test_without_its_package_a_near_duplicate_filter_says_what_to_install(out, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([f"out={out}", "prompt_similarity=0.8", f"to={tmp_path / 'to'}"]) == 2
    assert "pip install 'aisp-ray[export]'" in capsys.readouterr().err


def test_the_command_lists_what_each_filter_dropped(out, tmp_path, capsys):
    words = [f"out={out}", "min_margin=3", "control=true", f"to={tmp_path / 'to'}"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "complete: 600 responses dropped" in shown
    assert "min_margin: " in shown
    assert '"control")' in shown


def test_nothing_left_says_which_filters_dropped_everything(out, tmp_path, capsys):
    assert main([f"out={out}", "min_margin=1000", f"to={tmp_path / 'to'}"]) == 2
    assert "min_margin: 40 rows dropped" in capsys.readouterr().err


# ---------------------------------------------------------------- card and hub


def test_the_card_holds_counts_models_methods_and_licences(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: lfm1.0\n---\n# A model\n")
    config = {
        "policy": {"model": str(model)},
        "reward": {"model": "me/never-downloaded"},
        "judges": {"second": {"model": "demo:judge"}, "gold": {}},
        "data": {"path": "demo:shp"},
        "seed": 3,
    }
    out = write_output(tmp_path / "o", [made_row(m, i, 0) for m in ("aisp", "best_of_n") for i in range(8)], config)
    made, _ = run(str(out), tmp_path / "to", format="sft", license="cc-by-4.0", test_share=0.5, messages=True)
    _, front, body = (tmp_path / "to" / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license"] == "cc-by-4.0"
    assert {part["split"] for part in head["configs"][0]["data_files"]} == set(made.rows)
    assert f"| {out} | policy | {model} | other: lfm1.0 |" in body
    assert "| reward | me/never-downloaded | unknown |" in body
    assert "| judge second | demo:judge | MIT" in body
    assert "| prompts | demo:shp | MIT" in body
    assert "| made | 8 |" in body
    assert "| words of completion | " in body
    assert "seed 3" in body


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("# no front matter\nlicense: mit", "unknown"),
        ("---\nlicense: [\n---\n", "unknown"),
        ("---\n- a list\n---\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_licence_is_what_the_card_names(tmp_path, text, licence):
    (tmp_path / "README.md").write_text(text)
    assert licence_of(str(tmp_path), "model", online=False) == licence


@pytest.mark.parametrize("name", ["s3://bucket/data.jsonl", "gone/file.jsonl", "a b"])
def test_a_name_that_is_no_hub_id_has_an_unknown_licence(name):
    assert licence_of(name, "dataset", online=False) == "unknown"


def test_the_hub_gets_card_and_shards_and_loses_those_of_an_earlier_push(out, tmp_path, monkeypatch):
    files = {"data/train-00009.parquet": b"old", "notes.txt": b"mine", "control/train-00000.parquet": b"old"}
    with fake_hub(files) as (address, created):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        run(out, tmp_path / "to", push_to="me/set", test_share=0.5, shard_rows=10)
    ((call,)) = created
    assert (call["name"], call["organization"], call["type"]) == ("set", "me", "dataset")
    assert call.get("visibility") == "private" or call.get("private")
    written = {str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*.parquet")}
    assert len(written) > 2
    assert files.keys() == written | {"notes.txt", "README.md"}
    for name in (*written, "README.md"):
        assert files[name] == (tmp_path / "to" / name).read_bytes()


def test_a_hub_that_refuses_is_one_sentence_and_the_data_set_is_written(out, tmp_path, monkeypatch, capsys):
    with fake_hub({}, refuse=True) as (address, _):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        assert main([f"out={out}", "push_to=me/set", f"to={tmp_path / 'to'}"]) == 2
    assert "the data set is in" in capsys.readouterr().err
    assert len(table(tmp_path / "to")) == 40
