"""What is written in the demo world: questions, replies of any care, broken and cut text, and a careful reader's tags.

Standard library only. Every draw comes from a named `random.Random`: the same name gives the same text anywhere.
"""

from __future__ import annotations

import random
import zlib
from functools import lru_cache

from aisp_ray.demo import lexicon
from aisp_ray.demo.world import SENTENCE, WEIGHTS, Question, parse, statements, tones

SPLITS = ("train", "tuning", "test")
TAGS = ("open", "step", "answer", "warm", "closing", *WEIGHTS)
GREETINGS = ("hello", "hi there", "good morning", "dear team", "good day")
CONTEXTS = (
    "this is my first time",
    "I bought it last week",
    "a friend gave it to me",
    "I tried it once before",
    "my sister said you know this",
    "I do this twice a year",
    "I live alone",
)
THANKS = ("thank you", "thanks for that", "that was clear")
FOLLOW_UPS = ("what comes next", "what should I do now", "how do I go on")


def split_of(text: str) -> str:
    """The split a question belongs to, a pure function of its text: no question is in two splits."""
    bucket = zlib.crc32(text.encode()) % 20
    return "test" if bucket < 2 else "tuning" if bucket == 2 else "train"


def make_question(rng: random.Random, split: str, multi_turn: float = 0.0) -> Question:
    """Draw a question of the split; with probability `multi_turn` it has a first exchange and a follow-up."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(SPLITS)}")
    while True:
        question = _follow_up(rng) if rng.random() < multi_turn else _single(rng)
        if split_of(question.text) == split:
            return question


def _single(rng: random.Random) -> Question:
    topic = rng.randrange(len(lexicon.TOPICS))
    stage = rng.choice((0, 0, 1, 2))
    obstacle = rng.choice((None, 0, 1))
    mood = rng.choice(("calm", "calm", "worried", "hurried"))
    ask = rng.choice(lexicon.ASKS).format(job=lexicon.TOPICS[topic].job) + "?"
    parts = [rng.choice(CONTEXTS)] if rng.random() < 0.5 else []
    parts += _state_sentences(rng, topic, stage, obstacle, mood)
    rng.shuffle(parts)
    parts.insert(rng.choice((0, len(parts))), ask)
    if rng.random() < 0.4:
        parts.insert(0, rng.choice(GREETINGS))
    return Question(topic, stage, obstacle, mood, (_join(parts),))


def _follow_up(rng: random.Random) -> Question:
    first = _single(rng)
    opening = Question(first.topic, 0, None, "calm", (_join([_first_ask(rng, first.topic)]),))
    answer = make_reply(rng, opening, care=0.9)
    parts = _state_sentences(rng, first.topic, max(first.stage, 1), first.obstacle, first.mood)
    rng.shuffle(parts)
    parts = [rng.choice(THANKS), *parts, rng.choice(FOLLOW_UPS) + "?"]
    turns = (opening.text, answer, _join(parts))
    return Question(first.topic, max(first.stage, 1), first.obstacle, first.mood, turns)


def _first_ask(rng: random.Random, topic: int) -> str:
    return rng.choice(lexicon.ASKS).format(job=lexicon.TOPICS[topic].job) + "?"


def _state_sentences(rng: random.Random, topic: int, stage: int, obstacle: int | None, mood: str) -> list[str]:
    parts = []
    if stage:
        parts.append(rng.choice(lexicon.STAGES[stage]))
    if obstacle is not None:
        parts.append(rng.choice(lexicon.TOPICS[topic].obstacles[obstacle][0]))
    if mood != "calm":
        parts.append(rng.choice(lexicon.WORRIED if mood == "worried" else lexicon.HURRIED))
    return parts


def _join(parts: list[str]) -> str:
    return " ".join(p[0].upper() + p[1:] + ("" if p[-1] == "?" else ".") for p in parts)


# ------------------------------------------------------------------------------------------------------ replies


def make_reply(rng: random.Random, question: Question, care: float | None = None) -> str:
    """Draw a reply; `care` in 0..1 is the latent quality of the whole reply (drawn when not given)."""
    care = rng.random() if care is None else care
    if rng.random() < 0.15 * (1 - care):
        parts = [rng.choice(lexicon.TONES["refusal"])]
    else:
        parts = _opening(rng, care) + _body(rng, question, care)
    if rng.random() < 0.35 * (1 - care):
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(lexicon.TONES["filler"]))
    if rng.random() < 0.1 + 0.7 * care:
        parts.append(rng.choice(lexicon.TONES["closing"]))
    return _join(parts)


def _opening(rng: random.Random, care: float) -> list[str]:
    weights = {"warm": 0.1 + 0.7 * care, "plain": 0.3, "cold": 0.3 * (1 - care), "rude": 0.25 * (1 - care), "": 0.2}
    kind = rng.choices(tuple(weights), tuple(weights.values()))[0]
    return [rng.choice(lexicon.TONES[kind])] if kind else []


def _body(rng: random.Random, question: Question, care: float) -> list[str]:
    """Steps in order with care-dependent slips, and the answer to an obstacle before or after them."""
    count = max(1, min(4, round(1 + 3 * care + rng.gauss(0, 0.6))))
    slip = 0.05 + 0.4 * (1 - care)
    steps, position = [], question.stage
    for index in range(count):
        topic, step = question.topic, position
        if rng.random() < slip:
            topic, step = _slip(rng, topic, position)
        steps.append(_step_sentence(rng, topic, step % 6, index == 0))
        position += 1
    if rng.random() < slip * 0.5:
        rng.shuffle(steps)
    answers = _answers(rng, question, care)
    return answers + steps if rng.random() < 0.5 else steps + answers


def _slip(rng: random.Random, topic: int, position: int) -> tuple[int, int]:
    kind = rng.random()
    if kind < 0.35:
        return rng.randrange(len(lexicon.TOPICS)), rng.randrange(6)
    if kind < 0.7:
        return topic, rng.randrange(6)
    return topic, max(position - 1, 0)


def _step_sentence(rng: random.Random, topic: int, step: int, is_first: bool) -> str:
    links = ("", "", lexicon.LINKS[0]) if is_first else ("", "", *lexicon.LINKS[1:])
    tail = rng.choice(lexicon.TAILS) if rng.random() < 0.25 else ""
    return rng.choice(links) + rng.choice(lexicon.TOPICS[topic].steps[step]) + tail


def _answers(rng: random.Random, question: Question, care: float) -> list[str]:
    obstacles = lexicon.TOPICS[question.topic].obstacles
    if question.obstacle is not None and rng.random() < 0.2 + 0.7 * care:
        return [rng.choice(obstacles[question.obstacle][1])]
    if rng.random() < 0.2 * (1 - care):
        return [rng.choice(rng.choice(obstacles)[1])]
    return []


# --------------------------------------------------------------------------------------------- broken and cut text


def corrupt(rng: random.Random, reply: str) -> str:
    """Break a reply one to three times, as perturbed decoding would, so that a reward model sees broken text too."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        words = reply.split(" ")
        operation = rng.choice((_drop, _double, _swap, _foreign_word, _typo, _splice, _run_on, _stutter, _repeat))
        reply = " ".join(operation(rng, words)) if len(words) > 3 else reply + " " + rng.choice(_words())
    return reply


def cut(rng: random.Random, reply: str) -> str:
    """The reply cut somewhere, as a token limit would."""
    return reply[: rng.randrange(len(reply) // 4, len(reply))].rstrip()


def _drop(rng: random.Random, words: list[str]) -> list[str]:
    at, width = rng.randrange(len(words)), rng.choice((1, 1, 2, 3))
    return words[:at] + words[at + width :]


def _double(rng: random.Random, words: list[str]) -> list[str]:
    at = rng.randrange(len(words))
    return words[: at + 1] + words[at:]


def _swap(rng: random.Random, words: list[str]) -> list[str]:
    at = rng.randrange(len(words) - 1)
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _foreign_word(rng: random.Random, words: list[str]) -> list[str]:
    at = rng.randrange(len(words))
    return [*words[:at], rng.choice(_words()), *words[at + rng.choice((0, 1)) :]]


def _typo(rng: random.Random, words: list[str]) -> list[str]:
    at = rng.randrange(len(words))
    word, i = words[at], rng.randrange(len(words[at]) + 1)
    letter = rng.choice("abcdefghijklmnoprstuw ")
    return [*words[:at], word[:i] + rng.choice(("", letter)) + word[i + rng.choice((0, 1)) :], *words[at + 1 :]]


def _splice(rng: random.Random, words: list[str]) -> list[str]:
    """The start of one sentence goes on as the end of another one."""
    topic = rng.choice(lexicon.TOPICS)
    other = rng.choice(rng.choice(topic.steps)).split(" ")
    at = rng.randrange(len(words))
    return words[:at] + other[rng.randrange(len(other)) :] + words[at + 1 :]


def _run_on(rng: random.Random, words: list[str]) -> list[str]:
    at = rng.choice([i for i, word in enumerate(words) if word[-1:] in ".!?"] or [0])
    return [*words[:at], words[at][:-1], *words[at + 1 :]]


def _stutter(rng: random.Random, words: list[str]) -> list[str]:
    at, width = rng.randrange(len(words)), rng.choice((1, 2, 3))
    return words[:at] + words[at : at + width] * rng.choice((2, 3, 5)) + words[at + width :]


def _repeat(rng: random.Random, words: list[str]) -> list[str]:
    """A whole sentence said twice."""
    sentences = SENTENCE.findall(" ".join(words))
    at = rng.randrange(len(sentences))
    sentences.insert(rng.randrange(at, len(sentences)) + 1, " " + sentences[at].strip())
    return "".join(sentences).split(" ")


@lru_cache(maxsize=1)
def _words() -> tuple[str, ...]:
    sentences = [*statements(), *(s for kind in lexicon.TONES.values() for s in kind)]
    return tuple(sorted({word.strip(",") for sentence in sentences for word in sentence.split(" ")}))


@lru_cache(maxsize=1)
def _beginnings() -> frozenset[str]:
    """Every beginning of every sentence of the world."""
    steps = [link + s + tail for s in statements() for link in ("", *lexicon.LINKS) for tail in ("", *lexicon.TAILS)]
    return frozenset(s[:end] for s in (*steps, *tones()) for end in range(len(s) + 1))


def tag_ends(prompt_text: str, reply: str, ends: list[int]) -> list[str]:
    """What a careful reader notes at each of the given character positions of a reply.

    The kind of the sentence that ends there; inside a sentence "open", or "broken" once it cannot end well any more.
    """
    spans = [match.span() for match in SENTENCE.finditer(reply) if match[0].strip()]
    kinds = parse(prompt_text, reply).kinds
    tags = []
    for end in ends:
        at = next((i for i, (_, stop) in enumerate(spans) if end <= stop), len(spans) - 1)
        start, stop = spans[at]
        if end == stop and reply[stop - 1] in ".!?":
            tags.append(kinds[at])
        else:
            tags.append("open" if " ".join(reply[start:end].lower().split()) in _beginnings() else "broken")
    return tags
