"""A small generated help-desk world whose replies can be parsed, so that their true quality is known.

A question names a household job and may say how far the asker got, what stands in the way, and how the asker feels.
A reply is a row of sentences. A latent care level makes a reply good or bad as a whole. Since the grammar is known, any
text can be parsed back, and `gold_score` says how good a reply really is; a learned reward only sees noisy preferences.

Standard library only. Every draw comes from a named `random.Random`: the same name gives the same world anywhere.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

from aisp_ray.demo import lexicon

SPLITS = ("train", "tuning", "test")
_ROLE = re.compile(r"<(user|assistant)>|(?:^|\n)\s*(Human|User|Assistant):")
_MARKS = re.compile(r"<(?:bos|end|pad)>")
_SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")


@dataclass(frozen=True)
class Question:
    """What is asked: `turns` alternates user and assistant texts and ends with a user text."""

    topic: int
    stage: int  # steps already done, 0..2
    obstacle: int | None
    mood: str  # "calm", "worried" or "hurried"
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """The last user text."""
        return self.turns[-1]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns as chat messages."""
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(self.turns)]


@dataclass(frozen=True)
class ParsedReply:
    """A reply read against its prompt. `known` is False when the prompt is not of this world."""

    known: bool
    kinds: tuple[str, ...] = ()  # the kind of each sentence, in order
    steps: tuple[int, ...] = ()  # right steps, at their first mention
    first_step: int = 0  # the step that should come first
    asked_obstacle: bool = False
    mood: str = "calm"

    def count(self, kind: str) -> int:
        """How many sentences are of this kind."""
        return self.kinds.count(kind)


# ---------------------------------------------------------------------------------------------------- questions


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
    parts = [rng.choice(lexicon.CONTEXTS)] if rng.random() < 0.5 else []
    parts += _state_sentences(rng, topic, stage, obstacle, mood)
    rng.shuffle(parts)
    parts.insert(rng.choice((0, len(parts))), ask)
    if rng.random() < 0.4:
        parts.insert(0, rng.choice(lexicon.GREETINGS))
    return Question(topic, stage, obstacle, mood, (_join(parts),))


def _follow_up(rng: random.Random) -> Question:
    first = _single(rng)
    opening = Question(first.topic, 0, None, "calm", (_join([_first_ask(rng, first.topic)]),))
    answer = make_reply(rng, opening, care=0.9)
    parts = _state_sentences(rng, first.topic, max(first.stage, 1), first.obstacle, first.mood)
    rng.shuffle(parts)
    parts = [rng.choice(lexicon.THANKS), *parts, rng.choice(lexicon.FOLLOW_UPS) + "?"]
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
    sentences = _SENTENCE.findall(" ".join(words))
    at = rng.randrange(len(sentences))
    sentences.insert(rng.randrange(at, len(sentences)) + 1, " " + sentences[at].strip())
    return "".join(sentences).split(" ")


@lru_cache(maxsize=1)
def _words() -> tuple[str, ...]:
    sentences = [*_statements(), *(s for kind in lexicon.TONES.values() for s in kind)]
    return tuple(sorted({word.strip(",") for sentence in sentences for word in sentence.split(" ")}))


# ------------------------------------------------------------------------------------------------ parse and score


@lru_cache(maxsize=1)
def _statements() -> dict[str, tuple[str, int, int]]:
    """Sentence -> (kind, topic, index) for steps and answers to obstacles."""
    table = {}
    for number, topic in enumerate(lexicon.TOPICS):
        for index, wordings in enumerate(topic.steps):
            table.update({_key(w): ("step", number, index) for w in wordings})
        for index, (_, answers) in enumerate(topic.obstacles):
            table.update({_key(w): ("answer", number, index) for w in answers})
    return table


@lru_cache(maxsize=1)
def _tones() -> dict[str, str]:
    return {_key(sentence): kind for kind, sentences in lexicon.TONES.items() for sentence in sentences}


@lru_cache(maxsize=1)
def _asks() -> dict[str, int]:
    return {_key(ask.format(job=t.job)): i for i, t in enumerate(lexicon.TOPICS) for ask in lexicon.ASKS}


def _key(sentence: str) -> str:
    return " ".join(sentence.lower().split()).rstrip(".!?")


def _sentences(text: str) -> list[str]:
    return [" ".join(s.split()) for s in _SENTENCE.findall(text) if s.strip()]


@lru_cache(maxsize=1)
def _beginnings() -> frozenset[str]:
    """Every beginning of every sentence of the world."""
    steps = [link + s + tail for s in _statements() for link in ("", *lexicon.LINKS) for tail in ("", *lexicon.TAILS)]
    return frozenset(s[:end] for s in (*steps, *_tones()) for end in range(len(s) + 1))


def tag_ends(prompt_text: str, reply: str, ends: list[int]) -> list[str]:
    """What a careful reader notes at each of the given character positions of a reply.

    The kind of the sentence that ends there; inside a sentence "open", or "broken" once it cannot end well any more.
    """
    spans = [match.span() for match in _SENTENCE.finditer(reply) if match[0].strip()]
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


def user_texts(prompt_text: str) -> list[str]:
    """The user turns of a prompt: plain text, a Human/Assistant transcript, or a rendered chat template."""
    pieces, role, last = [], "user", 0
    for match in _ROLE.finditer(prompt_text):
        pieces.append((role, prompt_text[last : match.start()]))
        role = "assistant" if (match[1] or match[2]).lower() == "assistant" else "user"
        last = match.end()
    pieces.append((role, prompt_text[last:]))
    texts = [_MARKS.sub(" ", text).strip() for role, text in pieces if role == "user"]
    return [text for text in texts if text]


@lru_cache(maxsize=4096)
def read_prompt(prompt_text: str) -> Question | None:
    """The question behind a prompt, or None when the prompt is not of this world."""
    turns = user_texts(prompt_text)
    topics = [_asks()[key] for turn in turns for key in map(_key, _sentences(turn)) if key in _asks()]
    if not topics:
        return None
    said = {_key(sentence) for sentence in _sentences(turns[-1])}
    topic = lexicon.TOPICS[topics[-1]]
    stage = next((i for i, texts in enumerate(lexicon.STAGES) if said & set(map(_key, texts))), 0)
    obstacle = next((i for i, (texts, _) in enumerate(topic.obstacles) if said & set(map(_key, texts))), None)
    moods = (("worried", lexicon.WORRIED), ("hurried", lexicon.HURRIED))
    mood = next((name for name, texts in moods if said & set(map(_key, texts))), "calm")
    return Question(topics[-1], stage, obstacle, mood, (turns[-1],))


def parse(prompt_text: str, reply: str) -> ParsedReply:
    """Read a reply against its prompt, sentence by sentence."""
    question = read_prompt(prompt_text)
    if question is None:
        return ParsedReply(known=False)
    kinds: list[str] = []
    steps: list[int] = []
    seen: set[object] = set()
    for sentence in _sentences(_MARKS.sub(" ", reply)):
        kind, meaning = _classify(sentence, question)
        if meaning is not None and meaning in seen:
            kind = "repeated"
        elif kind == "step":
            assert meaning is not None
            steps.append(meaning[2])
        seen.add(meaning)
        kinds.append(kind)
    asked = question.obstacle is not None
    return ParsedReply(True, tuple(kinds), tuple(steps), question.stage, asked, question.mood)


def _classify(sentence: str, question: Question) -> tuple[str, tuple | None]:
    """(kind, meaning) of one sentence; the meaning is what must not be said twice."""
    if sentence[-1] not in ".!?":
        return "cut", None
    key = _key(sentence)
    if key in _tones():
        return _tones()[key], ("tone", key)
    link = next((link for link in lexicon.LINKS if key.startswith(link)), "")
    tail = next((tail for tail in lexicon.TAILS if key.endswith(tail)), "")
    found = _statements().get(key[len(link) : len(key) - len(tail)])
    if found is None:
        return "broken", None
    kind, topic, index = found
    if topic != question.topic:
        return "off_topic", found
    if kind == "answer":
        return ("answer" if index == question.obstacle else "needless"), found
    return ("step" if index >= question.stage else "stale"), found


WEIGHTS = {
    "plain": 0.1,
    "cold": -0.5,
    "rude": -1.0,
    "refusal": -1.5,
    "filler": -0.3,
    "off_topic": -0.8,
    "stale": -0.4,
    "needless": -0.4,
    "repeated": -0.6,
    "broken": -1.5,
    "cut": -0.8,
}


TAGS = ("open", "step", "answer", "warm", "closing", *WEIGHTS)


def gold_score(prompt_text: str, response: str) -> float:
    """How good a reply really is, about -4 to 4.5; NaN when the prompt is not of this world.

    Up to four right steps, the right one first, in order; the obstacle answered; a warm word (more so for a worried
    asker); a closing at the end; minus what is rude, needless, repeated, off topic, broken or cut.
    """
    parsed = parse(prompt_text, response)
    if not parsed.known:
        return math.nan
    if not parsed.kinds:
        return -2.0
    score = sum(WEIGHTS.get(kind, 0.0) for kind in parsed.kinds)
    score += 0.5 * min(len(parsed.steps), 4)
    score += 0.4 * (parsed.steps[:1] == (parsed.first_step,))
    score -= 0.4 * sum(b < a for a, b in zip(parsed.steps, parsed.steps[1:], strict=False))
    if parsed.asked_obstacle:
        score += 1.0 if parsed.count("answer") else -0.4
    score += (0.8 if parsed.mood == "worried" else 0.5) * bool(parsed.count("warm"))
    score -= 0.3 * max(parsed.count("warm") - 1, 0)
    score += 0.4 * (parsed.kinds[-1] == "closing") - 0.3 * max(parsed.count("closing") - 1, 0)
    if parsed.mood == "hurried":
        score -= 0.2 * max(len(parsed.kinds) - 6, 0) + 0.3 * parsed.count("filler")
    return score
