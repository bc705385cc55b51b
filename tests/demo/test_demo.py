"""The demo world, its models and its prompts: facts that everything else relies on."""

from __future__ import annotations

import json
import math
import random
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from aisp_ray import demo
from aisp_ray.demo import lexicon, world
from tools.demo_models import data, fit_reward, writing

DEMO = Path(demo.__path__[0])
PROMPT = "I have no vinegar. How do I clean the kettle?"
GOOD = (
    "Happy to help. First, unplug the kettle. Then pour the old water out. Add a cup of vinegar with care. "
    "Use lemon juice. Let me know how it goes."
)
BAD = "Read the manual. Sand the wood. The weather is nice today."
BROKEN = "Happy to the first unplug. Then pour pour the water the out. Add a. Use lem"


def rows(name: str) -> list[dict]:
    """The rows of a prompt file."""
    return [json.loads(line) for line in (DEMO / "prompts" / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO / "models" / "policy")


@pytest.fixture(scope="module", params=["reward", "judge"])
def scorer(request):
    return AutoModelForSequenceClassification.from_pretrained(DEMO / "models" / request.param).eval()


# -------------------------------------------------------------------------------------------------------- world


def test_the_world_is_a_function_of_its_seed():
    def draw(seed: str) -> list[str]:
        rng = random.Random(seed)
        questions = [writing.make_question(rng, "test", 0.3) for _ in range(20)]
        return [writing.corrupt(rng, writing.make_reply(rng, q)) for q in questions]

    assert draw("a") == draw("a")
    assert draw("a") != draw("b")


def test_no_sentence_has_two_meanings():
    statements = [s for t in lexicon.TOPICS for s in (*chain(*t.steps), *chain(*(a for _, a in t.obstacles)))]
    sentences = statements + list(chain(*lexicon.TONES.values()))
    assert len(sentences) == len({s.lower() for s in sentences})
    assert not any(s.lower().startswith(lexicon.LINKS) or s.endswith(lexicon.TAILS) for s in sentences)
    assert all(len(t.steps) == 6 for t in lexicon.TOPICS)


def test_every_clean_reply_is_parsed_without_a_broken_sentence():
    rng = random.Random("clean")
    for _ in range(300):
        question = writing.make_question(rng, "test", 0.3)
        parsed = world.parse(data.prompt_text(question), writing.make_reply(rng, question))
        assert parsed.known
        assert not parsed.count("broken")
        assert not parsed.count("cut")


def test_gold_orders_good_above_bad_above_broken():
    good, bad, broken = (world.gold_score(PROMPT, reply) for reply in (GOOD, BAD, BROKEN))
    assert good > bad > broken
    assert good == pytest.approx(0.5 * 3 + 0.4 + 1.0 + 0.5 + 0.4)


def test_gold_rises_with_care_and_falls_with_corruption():
    totals = {"careless": 0.0, "careful": 0.0, "corrupted": 0.0}
    for index in range(200):
        rng = random.Random(f"care/{index}")
        question = writing.make_question(rng, "test")
        careful = writing.make_reply(rng, question, care=0.9)
        totals["careful"] += world.gold_score(question.text, careful)
        totals["careless"] += world.gold_score(question.text, writing.make_reply(rng, question, care=0.1))
        totals["corrupted"] += world.gold_score(question.text, writing.corrupt(rng, careful))
    assert totals["careful"] > totals["careless"] + 200
    assert totals["careful"] > totals["corrupted"] + 150


@pytest.mark.parametrize("prompt", ["Why is the sky blue?", "", "I broke the kettle.", "\n\nHuman: hi\n\nAssistant:"])
def test_a_foreign_prompt_has_no_gold_score(prompt):
    assert math.isnan(world.gold_score(prompt, GOOD))


def test_gold_reads_a_prompt_in_every_dress():
    messages = "<bos><user>" + PROMPT + "<assistant>"
    for prompt in (f"User: {PROMPT}\nAssistant:", f"\n\nHuman: {PROMPT}\n\nAssistant:", messages, f"  {PROMPT}\n"):
        assert world.gold_score(prompt, GOOD) == world.gold_score(PROMPT, GOOD)


def test_a_follow_up_keeps_the_topic_and_takes_its_own_state():
    follow_up = "Thank you. Step one is done. What comes next?"
    prompt = f"\n\nHuman: {PROMPT}\n\nAssistant: {GOOD}\n\nHuman: {follow_up}\n\nAssistant:"
    question = world.read_prompt(prompt)
    assert question.stage == 1
    assert question.obstacle is None
    assert lexicon.TOPICS[question.topic].name == "kettle"
    assert world.gold_score(prompt, "Empty the kettle.") > world.gold_score(prompt, "Unplug the kettle.")


def test_gold_survives_cut_text_odd_spaces_and_nothing():
    whole, spaced = world.gold_score(PROMPT, GOOD), world.gold_score(PROMPT, "  " + GOOD.replace(" ", "  \n"))
    assert spaced == whole
    assert world.gold_score(PROMPT, GOOD + " I am h") < whole
    assert (
        world.gold_score(PROMPT, "") == world.gold_score(PROMPT, " \n") < world.gold_score(PROMPT, "Empty the kettle.")
    )
    assert math.isfinite(world.gold_score(PROMPT, "\x00 \ufffd ... ?! ñ"))
    assert world.gold_score(PROMPT, GOOD + "<end>") == whole


# ------------------------------------------------------------------------------------------------------ prompts


def test_prompt_files_hold_distinct_prompts_of_this_world():
    shp = [row["history"] for row in rows("shp.jsonl")]
    tuning = [row["history"] for row in rows("tuning.jsonl")]
    hh = [row["chosen"][: row["chosen"].rindex("\n\nAssistant:")] for row in rows("hh_rlhf.jsonl")]
    assert len(shp) >= 200
    assert len(hh) >= 200
    assert len(tuning) >= 64
    last = [world.user_texts(text)[-1] for text in hh]
    everything = shp + tuning + last
    assert len(everything) == len(set(everything))
    assert all(world.read_prompt(text) for text in shp + tuning + hh)
    assert {writing.split_of(text) for text in shp + last} == {"test"}
    assert {writing.split_of(text) for text in tuning} == {"tuning"}
    assert sum(text.count("\n\nHuman:") == 2 for text in hh) > 30


def test_hh_pairs_share_their_prompt_and_shp_rows_name_the_preferred_reply():
    for row in rows("hh_rlhf.jsonl"):
        cut = row["chosen"].rindex("\n\nAssistant:")
        assert row["chosen"].startswith("\n\nHuman: ")
        assert row["chosen"][:cut] == row["rejected"][: row["rejected"].rindex("\n\nAssistant:")]
    for row in rows("shp.jsonl"):
        assert row["preferred"] == row["human_ref_A" if row["labels"] else "human_ref_B"]
    assert len({row["post_id"] for row in rows("shp.jsonl") + rows("tuning.jsonl")}) == len(rows("shp.jsonl")) + len(
        rows("tuning.jsonl")
    )


def test_committed_prompts_are_what_the_script_writes(tmp_path):
    data.write_prompts(tmp_path, seed=0)
    for name in ("shp.jsonl", "hh_rlhf.jsonl", "tuning.jsonl"):
        assert (tmp_path / name).read_text() == (DEMO / "prompts" / name).read_text()


# ------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    "text", ["Naïve 你好 🚀 ' ok ' , no ?\n\n\ttab", "How do I clean the kettle?", "\u0000é\u200d"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_the_template_alone_adds_one_bos(tokenizer):
    dialogue = [{"role": "user", "content": PROMPT}]
    text = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
    assert text == f"<bos><user>{PROMPT}<assistant>"
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token == "<end>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    whole = tokenizer.apply_chat_template([*dialogue, {"role": "assistant", "content": GOOD}], tokenize=False)
    assert whole == text + GOOD + "<end>"


def test_the_policy_loads_plainly_and_answers(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(DEMO / "models" / "policy")
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer(f"<bos><user>{PROMPT}<assistant>", return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64)
    reply = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert out[0, -1] == tokenizer.eos_token_id
    parsed = world.parse(PROMPT, reply)
    assert parsed.known
    assert parsed.count("step")
    assert not parsed.count("broken")


def test_a_long_foreign_prompt_runs(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(DEMO / "models" / "policy").eval()
    ids = tokenizer("Qué? 為什麼 " * 400, return_tensors="pt")["input_ids"][:, :2048]
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
        assert ids.shape[1] == 2048


@torch.no_grad()
def test_rewards_order_held_out_pairs_and_see_broken_text(tokenizer, scorer):
    pairs = data.fresh_pairs(100, "test")
    dialogues = [q.messages for q, _, _ in pairs]
    better, worse = (
        fit_reward.score(scorer, tokenizer, dialogues, [p[i] for p in pairs], [True] * 100) for i in (1, 2)
    )
    assert (better > worse).float().mean() > 0.65
    message = [[{"role": "user", "content": PROMPT}]] * 3
    good, bad, broken = fit_reward.score(scorer, tokenizer, message, [GOOD, BAD, BROKEN], [True] * 3).tolist()
    assert good > bad
    assert good > broken + 1.0


def test_reward_and_judge_are_different_models():
    reward, judge = (
        AutoModelForSequenceClassification.from_pretrained(DEMO / "models" / name) for name in ("reward", "judge")
    )
    for (name, a), (_, b) in zip(reward.named_parameters(), judge.named_parameters(), strict=True):
        assert not torch.equal(a, b), name
