"""Exported data sets: what goes in, what is left out, and that `datasets` and TRL read them."""

from __future__ import annotations

import math
from pathlib import Path

import datasets
import pytest
from made_rows import made_error, made_particles, made_row, write_output

from aisp_ray.commands.export import main
from aisp_ray.report.export.formats import asked, distinct
from aisp_ray.report.export.pools import Response
from aisp_ray.report.export.run import export
from aisp_ray.report.export.settings import ExportSettings

METHODS = ("best_of_n", "aisp")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> str:
    rows = [made_row(method, ordinal, 0) for method in METHODS for ordinal in range(20)]
    drawn = [row for method in METHODS for ordinal in range(20) for row in made_particles(method, ordinal, 0)]
    folder = write_output(
        tmp_path_factory.mktemp("export") / "out", [*rows, made_error("aisp", 20, 0)], None, drawn
    )  # fmt: skip
    return str(folder)


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(out: str, to: Path, **keys) -> datasets.DatasetDict:
    settings = ExportSettings(out=(out,), to=str(to), **keys)
    counts = export(settings).rows
    found = datasets.load_dataset(str(to))
    assert {split: len(rows) for split, rows in found.items()} == counts
    return found


def scored(ordinal: int, methods=METHODS) -> list[dict]:
    rows = [row for method in sorted(methods) for row in made_particles(method, ordinal, 0)]
    return [row for row in rows if row["reward"] is not None]


def test_pairs_are_the_best_against_the_worst_of_all_particles(out, tmp_path):
    rows = load(out, tmp_path / "to")["train"]
    assert len(rows) == 20
    for ordinal, row in enumerate(rows):
        drawn = scored(ordinal)
        best, worst = max(drawn, key=lambda r: r["reward"]), min(drawn, key=lambda r: r["reward"])
        assert row["prompt"] == [{"role": "user", "content": made_row("aisp", ordinal, 0)["prompt"]}]
        assert row["chosen"] == [{"role": "assistant", "content": best["response"]}]
        assert row["rejected"] == [{"role": "assistant", "content": worst["response"]}]
        assert (row["reward_chosen"], row["reward_rejected"]) == (best["reward"], worst["reward"])
        assert row["method_chosen"] == best["method"]
        assert row["prompt_id"] == f"made/test/{ordinal:08d}"


def test_the_base_is_the_first_draw_of_its_method(out, tmp_path):
    rows = load(out, tmp_path / "to", rejected="base", methods=("aisp",), messages=False)["train"]
    for row in rows:
        ordinal = int(row["prompt_id"][-8:])
        first = made_particles("best_of_n", ordinal, 0)[0]
        assert row["rejected"] == first["response"]
        assert row["chosen"] == max(scored(ordinal, ("aisp",)), key=lambda r: r["reward"])["response"]


def test_a_base_draw_that_was_cut_is_no_rejected_response(tmp_path):
    drawn = [row for method in METHODS for ordinal in range(4) for row in made_particles(method, ordinal, 0)]
    for row in drawn:
        if (row["method"], row["ordinal"], row["iteration"], row["particle"]) == ("best_of_n", 2, 0, 0):
            row["finish_reason"] = "length"
    rows = [made_row(method, ordinal, 0) for method in METHODS for ordinal in range(4)]
    out = str(write_output(tmp_path / "out", rows, None, drawn))
    kept = load(out, tmp_path / "to", rejected="base")["train"]
    assert sorted({int(row["prompt_id"][-8:]) for row in kept}) == [0, 3]
    assert len(load(out, tmp_path / "all", rejected="base", complete=False)["train"]) == 3


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"methods": ("aips",)}, "methods=aips: no rows of it; the rows are of aisp, best_of_n"),
        ({"rejected": "base", "base": "bon"}, "base=bon: no rows of it; the rows are of aisp, best_of_n"),
        ({"min_reward": 1e9}, "nothing is left to export"),
    ],
)
def test_an_export_that_cannot_be_made_says_why_and_leaves_the_earlier_one(out, tmp_path, keys, sentence):
    load(out, tmp_path / "to")
    before = {path: path.read_bytes() for path in (tmp_path / "to").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=sentence):
        export(ExportSettings(out=(out,), to=str(tmp_path / "to"), **keys))
    assert {path: path.read_bytes() for path in (tmp_path / "to").rglob("*") if path.is_file()} == before


def test_a_mistyped_output_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no rows in"):
        export(ExportSettings(out=(str(tmp_path / "typo"),)))
    assert not (tmp_path / "typo").exists()


def test_margins_and_reward_limits_filter_pairs(out, tmp_path):
    margins = [max(r["reward"] for r in scored(i)) - min(r["reward"] for r in scored(i)) for i in range(20)]
    low, high = sorted(margins)[5], sorted(margins)[15]
    rows = load(out, tmp_path / "a", min_margin=low, max_margin=high)["train"]
    assert len(rows) == sum(low <= m <= high for m in margins)
    best = [max(r["reward"] for r in scored(i)) for i in range(20)]
    rows = load(out, tmp_path / "b", min_reward=sorted(best)[10])["train"]
    assert len(rows) == 10


def test_several_pairs_of_a_prompt_never_share_a_response(out, tmp_path):
    rows = load(out, tmp_path / "to", pairs=3, messages=False)["train"]
    assert len(rows) == 60
    texts = [text for row in rows.select(range(3)) for text in (row["chosen"], row["rejected"])]
    assert len(set(texts)) == 6
    assert rows[0]["reward_chosen"] > rows[1]["reward_chosen"] > rows[1]["reward_rejected"] > rows[0]["reward_rejected"]


def test_sft_is_the_best_selected_response_of_each_prompt(out, tmp_path):
    rows = load(out, tmp_path / "to", format="sft", messages=False)["train"]
    assert len(rows) == 20
    for row in rows:
        ordinal = int(row["prompt_id"][-8:])
        best = max((made_row(method, ordinal, 0) for method in METHODS), key=lambda r: r["reward"])
        assert (row["prompt"], row["completion"], row["reward"]) == (best["prompt"], best["response"], best["reward"])


def test_candidates_are_all_scored_responses_once(out, tmp_path):
    rows = load(out, tmp_path / "to", format="candidates", messages=False, methods=("aisp",))["train"]
    first = [row for row in rows if row["prompt_id"] == "made/test/00000000"]
    drawn = scored(0, ("aisp",))
    assert {row["completion"] for row in first} == {row["response"] for row in drawn}
    assert len(first) == len({row["response"] for row in drawn})
    assert [row["reward"] for row in first] == sorted((row["reward"] for row in first), reverse=True)
    assert all(math.isfinite(row["reward"]) for row in rows)


def test_a_prompt_is_in_one_split_only_and_shares_come_out(out, tmp_path):
    found = load(out, tmp_path / "to", format="candidates", test_share=0.4)
    train, test = ({row["prompt_id"] for row in found[split]} for split in ("train", "test"))
    assert train.isdisjoint(test)
    assert len(train | test) == 20
    assert 2 <= len(test) <= 14


def test_repeats_and_cut_and_empty_responses_are_left_out():
    drawn = [
        Response("a", 1.0, "m", "stop"),
        Response("b", 3.0, "m", "length"),
        Response("a", 2.0, "m", "stop"),
        Response("  ", 9.0, "m", "stop"),
        Response("c", 1.5, "m", "stop_string"),
    ]
    kept = distinct(drawn, ExportSettings(out=("x",)))
    assert [(r.text, r.reward) for r in kept] == [("c", 1.5), ("a", 1.0)]
    assert distinct(drawn, ExportSettings(out=("x",), complete=False))[0].text == "b"


def test_a_dialogue_becomes_its_turns():
    text = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how are you?\n\nAssistant:"
    assert asked(text, messages=True) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "how are you?"},
    ]
    assert asked(text, messages=False) == text


def test_an_export_replaces_an_earlier_one_and_nothing_else(out, tmp_path):
    load(out, tmp_path / "to", format="sft", test_share=0.5)
    assert set(load(out, tmp_path / "to", format="sft")) == {"train"}
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt, which no export wrote"):
        export(ExportSettings(out=(out,), to=str(tmp_path / "mine"), format="sft"))
    assert (tmp_path / "mine" / "data" / "thesis.txt").exists()


def test_many_rows_are_several_shards(out, tmp_path):
    rows = load(out, tmp_path / "to", format="sft", shard_rows=6)["train"]
    assert len(list((tmp_path / "to" / "data").iterdir())) == 4
    assert rows["prompt_id"] == sorted(rows["prompt_id"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "out is empty"),
        (["out=x", "format=dpo"], "preference, sft, candidates"),
        (["out=x", "rejected=base", "pairs=2"], "there is one such draw"),
        (["out=x", "min_margin=2", "max_margin=1"], "0 <= min <= max"),
        (["out=x", "form=sft"], 'Did you mean "format"?'),
        (["out=x", "test_share=1"], "[0, 1)"),
        (["out=x", "test_share=0.6", "validation_share=0.5"], "nothing to train on"),
        (["out=x", "length_ratio=0.8"], "1 asks for equal lengths"),
        (["out=x", "format=sft", "min_margin=1"], "no effect with format=sft"),
        (["out=x", "min_words=9", "max_words=3"], "min at most max"),
        (["out=x", "prompt_similarity=1.5"], "Jaccard"),
        (["out=x", "top_k_overall=0"], "at least 1 row"),
        (["out=x", "shares={a: 0.5}"], "shares sum to 0.5"),
        (["out=x", "shares={a: yes, b: 0.5}"], "shares.a is"),
        (["out=x", "to=s3://b/x", "push_to=me/set"], "needs a local `to`"),
    ],
)
def test_a_wrong_export_command_is_one_sentence(words, sentence, capsys):
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_says_how_to_load_what_it_wrote(out, tmp_path, capsys):
    assert main([f"out={out}", "format=sft", f"to={tmp_path / 'to'}"]) == 0
    shown = capsys.readouterr().out
    assert "sft: train 20 rows" in shown
    assert f'datasets.load_dataset("{tmp_path / "to"}")' in shown


def test_without_particles_the_key_that_writes_them_is_named(tmp_path, capsys):
    out = write_output(tmp_path / "o", [made_row("aisp", 0, 0)])
    assert main([f"out={out}"]) == 2
    assert "run.particles=true" in capsys.readouterr().err


def test_nothing_that_passes_is_an_error_and_not_an_empty_set(out, tmp_path, capsys):
    assert main([f"out={out}", "min_margin=1000", f"to={tmp_path / 'to'}"]) == 2
    assert "nothing is left" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("messages", [True, False])
def test_trl_trains_on_exported_pairs_and_demonstrations(out, tmp_path, messages):
    trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import aisp_ray

    folder = Path(aisp_ray.__file__).parent / "demo" / "models" / "policy"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    common = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "logging_steps": 1}
    common |= {"learning_rate": 1e-3, "bf16": False, "gradient_checkpointing": False}
    for kind, trainer_of, config_of in (
        ("preference", trl.DPOTrainer, trl.DPOConfig),
        ("sft", trl.SFTTrainer, trl.SFTConfig),
    ):
        data = load(out, tmp_path / kind, format=kind, messages=messages)["train"]
        model = AutoModelForCausalLM.from_pretrained(folder)
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        config = config_of(output_dir=str(tmp_path / f"run_{kind}"), **common)
        trainer = trainer_of(model=model, args=config, train_dataset=data, processing_class=tokenizer)
        losses = [entry["loss"] for entry in (trainer.train(), trainer.state.log_history)[1] if "loss" in entry]
        assert losses, kind
        assert all(map(math.isfinite, losses)), kind
        after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        assert not torch.equal(before, after), kind
