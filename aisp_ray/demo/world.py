"""The demo's help desk: replies that can be parsed, so that their true quality is known.

A question names a household job and may say how far the asker got, what stands in the way, and how the asker feels.
A reply is a row of sentences of a known grammar, so `gold_score` can tell how good it really is, while a learned reward
has only seen noisy preferences. `tools/demo_models/writing.py` writes questions and replies. Standard library only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from aisp_ray.demo import lexicon

_ROLE = re.compile(r"<(user|assistant)>|(?:^|\n)\s*(Human|User|Assistant):")
_MARKS = re.compile(r"<(?:bos|end|pad)>")
SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")


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


@lru_cache(maxsize=1)
def statements() -> dict[str, tuple[str, int, int]]:
    """Sentence -> (kind, topic, index) for steps and answers to obstacles."""
    table = {}
    for number, topic in enumerate(lexicon.TOPICS):
        for index, wordings in enumerate(topic.steps):
            table.update({_key(w): ("step", number, index) for w in wordings})
        for index, (_, answers) in enumerate(topic.obstacles):
            table.update({_key(w): ("answer", number, index) for w in answers})
    return table


@lru_cache(maxsize=1)
def tones() -> dict[str, str]:
    return {_key(sentence): kind for kind, sentences in lexicon.TONES.items() for sentence in sentences}


@lru_cache(maxsize=1)
def _asks() -> dict[str, int]:
    return {_key(ask.format(job=t.job)): i for i, t in enumerate(lexicon.TOPICS) for ask in lexicon.ASKS}


def _key(sentence: str) -> str:
    return " ".join(sentence.lower().split()).rstrip(".!?")


def _sentences(text: str) -> list[str]:
    return [" ".join(s.split()) for s in SENTENCE.findall(text) if s.strip()]


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
    if key in tones():
        return tones()[key], ("tone", key)
    link = next((link for link in lexicon.LINKS if key.startswith(link)), "")
    tail = next((tail for tail in lexicon.TAILS if key.endswith(tail)), "")
    found = statements().get(key[len(link) : len(key) - len(tail)])
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
