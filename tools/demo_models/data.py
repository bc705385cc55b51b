"""What the demo models are trained and tried on: documents, preference groups, and prompt files.

Standard library only; all of it is drawn from the world under named seeds.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aisp_ray.demo import world
from tools.demo_models import writing

PREFERENCE_NOISE = 1.0  # gold points; preferences are drawn with P(a over b) = sigmoid((gold_a - gold_b) / noise)
MULTI_TURN = 0.25


@dataclass(frozen=True)
class Group:
    """Replies to one question. `ended` is False for a reply that ran into a token limit; `gold` is its true score."""

    question: world.Question
    replies: tuple[str, ...]
    ended: tuple[bool, ...]
    gold: tuple[float, ...]


def prompt_text(question: world.Question) -> str:
    """The prompt as one text: plain for one turn, a Human/Assistant transcript for more."""
    return question.text if len(question.turns) == 1 else hh_prompt(question)


def hh_prompt(question: world.Question) -> str:
    """The prompt as an HH-RLHF transcript that ends where the reply starts."""
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[i % 2]}: {turn}" for i, turn in enumerate(question.turns)) + "\n\nAssistant:"


def documents(count: int, seed: str) -> Iterator[tuple[world.Question, str]]:
    """Questions with a reply of random care: what the policy learns from."""
    for index in range(count):
        rng = random.Random(f"document/{seed}/{index}")
        question = writing.make_question(rng, "train", MULTI_TURN)
        yield question, writing.make_reply(rng, question)


def group(name: str, size: int = 4, split: str = "train") -> Group:
    """Replies of any care to one question; about half are corrupted, cut, or replies to another question."""
    rng = random.Random(f"group/{name}")
    question = writing.make_question(rng, split, MULTI_TURN)
    drawn = [_any_reply(rng, question) for _ in range(size)]
    replies, ended = zip(*drawn, strict=True)
    gold = tuple(world.gold_score(prompt_text(question), reply) for reply in replies)
    return Group(question, replies, ended, gold)


def _any_reply(rng: random.Random, question: world.Question) -> tuple[str, bool]:
    kind = rng.random()
    if kind < 0.05:
        other = writing.make_question(rng, "train")
        return writing.make_reply(rng, other), True
    reply = writing.make_reply(rng, question)
    if kind < 0.35:
        return writing.corrupt(rng, reply), True
    if kind < 0.5:
        return writing.cut(rng, reply), rng.random() < 0.4
    return reply, True


def prefers_first(rng: random.Random, first: float, second: float) -> bool:
    """One noisy judgement between two replies of the given gold scores."""
    return rng.random() < 1 / (1 + math.exp((second - first) / PREFERENCE_NOISE))


def fresh_pairs(count: int, seed: str) -> list[tuple[world.Question, str, str]]:
    """(question, preferred, other) on test questions, by noisy judgement: what pair accuracy is measured on."""
    pairs = []
    for index in range(count):
        g = group(f"fresh/{seed}/{index}", size=2, split="test")
        first = prefers_first(random.Random(f"judge/{seed}/{index}"), *g.gold)
        pairs.append((g.question, g.replies[not first], g.replies[first]))
    return pairs


# ------------------------------------------------------------------------------------------------- prompt files


def distinct_questions(count: int, split: str, name: str, multi_turn: float) -> list[world.Question]:
    """Questions with distinct texts."""
    found: dict[str, world.Question] = {}
    index = 0
    while len(found) < count:
        question = writing.make_question(random.Random(f"prompt/{name}/{index}"), split, multi_turn)
        found.setdefault(question.text, question)
        index += 1
    return list(found.values())


def _reply_pair(question: world.Question, name: str) -> tuple[str, str, bool]:
    """Two clean replies, and whether the first one is preferred."""
    rng = random.Random(f"pair/{name}")
    first, second = writing.make_reply(rng, question), writing.make_reply(rng, question)
    prompt = prompt_text(question)
    better = prefers_first(rng, world.gold_score(prompt, first), world.gold_score(prompt, second))
    return first, second, better


def shp_row(question: world.Question, post_id: str) -> dict[str, object]:
    """One row with the fields of SHP that evaluations read; labels is 1 when reply A has more votes."""
    first, second, better = _reply_pair(question, post_id)
    return {
        "post_id": post_id,
        "domain": "demo_help_desk",
        "history": question.text,
        "human_ref_A": first,
        "human_ref_B": second,
        "labels": int(better),
        "preferred": first if better else second,
    }


def hh_row(question: world.Question, name: str) -> dict[str, object]:
    """One row in the HH-RLHF schema: two whole dialogues that differ in the last assistant turn."""
    first, second, better = _reply_pair(question, name)
    chosen, rejected = (first, second) if better else (second, first)
    prompt = hh_prompt(question)
    return {"chosen": f"{prompt} {chosen}", "rejected": f"{prompt} {rejected}"}


def write_prompts(folder: Path, seed: int) -> None:
    """Write shp.jsonl, hh_rlhf.jsonl (other questions, a third with two turns) and tuning.jsonl."""
    shp_questions = distinct_questions(256, "test", f"shp/{seed}", 0.0)
    used = {q.text for q in shp_questions}
    hh_questions = [q for q in distinct_questions(600, "test", f"hh/{seed}", 0.33) if q.text not in used][:256]
    tuning = distinct_questions(96, "tuning", f"tuning/{seed}", 0.0)
    _write(folder / "shp.jsonl", [shp_row(q, f"demo{i:04d}") for i, q in enumerate(shp_questions)])
    _write(folder / "hh_rlhf.jsonl", [hh_row(q, f"hh/{i}") for i, q in enumerate(hh_questions)])
    _write(folder / "tuning.jsonl", [shp_row(q, f"tune{i:04d}") for i, q in enumerate(tuning)])


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
