r"""How a dialogue becomes the text that a policy reads, and where its response ends.

`chat` is the checkpoint's own chat template. The others are fixed texts; papers that use the same base model with
different texts get different rewards, so the text is a setting, printed for the first prompt and kept in the manifest.

| name | one user turn | dialogue | response is cut at |
|---|---|---|---|
| re_control_user | `User: x\nAssistant:` | `\n\nUser:  x\n\nAssistant: y\n\nUser:  z\n\nAssistant:` | `User:` |
| re_control_human | `Human: x\nAssistant:` | the same with `Human:` | `Human:` |
| transcript | `\n\nHuman: x\n\nAssistant:` | HH-RLHF's own text | `\n\nHuman:` |
| args | ` Human: x Assistant: ` | HH-RLHF's own text | `###Human:`, `\n\nHuman:` |
| vicuna | `<system> USER: x ASSISTANT:` | turns joined, `</s>` after each reply | `USER:` |
| plain | the prompt's text | the prompt's text | |

The two spaces in RE-Control's dialogues are theirs: "Human:" is replaced by a tag that ends with a space.
Differs from RE-Control: only turn markers are replaced, a "Human:" inside a message stays.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aisp_ray.types import Message, Prompt

CHAT = "chat"
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True, slots=True)
class Template:
    """A fixed text format."""

    write: Callable[[Prompt], str]
    stop_strings: tuple[str, ...] = ()  # a response is cut where one of these starts
    strip: bool = True  # spaces and newlines around a response are not part of it


def turns_of(prompt: Prompt, system: str | None = None) -> tuple[Message, ...]:
    """The prompt's turns, `system` put first where they hold no system turn."""
    turns = prompt.messages or (Message("user", prompt.text),)
    if system and turns[0].role != "system":
        turns = (Message("system", system), *turns)
    return turns


def is_dialogue(prompt: Prompt) -> bool:
    """Whether the prompt comes as a text of turns (HH-RLHF, one turn included) or has several turns."""
    asked = [turn for turn in prompt.messages if turn.role != "system"]
    return len(asked) > 1 or prompt.text.startswith("\n\nHuman:")


def merge_turns(turns: Sequence[Message]) -> list[Message]:
    """Neighbouring turns of one role as one turn: chat templates want roles to alternate."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            turn = Message(turn.role, f"{merged.pop().content}\n\n{turn.content}")
        merged.append(turn)
    return merged


def fold_system(turns: Sequence[Message]) -> list[Message]:
    """The system turn as the opening of the first user turn: some chat templates know no system role."""
    if len(turns) < 2 or turns[0].role != "system":
        return list(turns)
    first = Message(turns[1].role, f"{turns[0].content}\n\n{turns[1].content}")
    return [first, *turns[2:]]


def _system_text(prompt: Prompt, end: str) -> str:
    return "".join(turn.content + end for turn in prompt.messages if turn.role == "system")


def _tagged(prompt: Prompt, user: str) -> str:
    """Turns as "\\n\\n<tag> text", ending with "\\n\\nAssistant:"."""
    tags = {"user": user, "assistant": "Assistant: "}
    turns = [turn for turn in turns_of(prompt) if turn.role != "system"]
    body = "".join(f"\n\n{tags[turn.role]}{turn.content}" for turn in turns)
    return f"{_system_text(prompt, '')}{body}\n\nAssistant:"


def _re_control(tag: str) -> Callable[[Prompt], str]:
    def write(prompt: Prompt) -> str:
        if is_dialogue(prompt):
            return _tagged(prompt, f"{tag}:  ")
        return f"{_system_text(prompt, chr(10))}{tag}: {turns_of(prompt)[-1].content}\nAssistant:"

    return write


def _transcript(prompt: Prompt) -> str:
    return _tagged(prompt, "Human: ")


def _args(prompt: Prompt) -> str:
    if is_dialogue(prompt):
        return _transcript(prompt)
    return f"{_system_text(prompt, '')} Human: {turns_of(prompt)[-1].content} Assistant: "


def _vicuna(prompt: Prompt) -> str:
    turns = turns_of(prompt, _VICUNA_SYSTEM)
    text = turns[0].content
    for turn in turns[1:]:
        text += f"ASSISTANT: {turn.content}</s>" if turn.role == "assistant" else f"{_gap(text)}USER: {turn.content} "
    return text + "ASSISTANT:"


def _gap(text: str) -> str:
    return "" if text.endswith("</s>") else " "


def _plain(prompt: Prompt) -> str:
    return prompt.text


TEMPLATES = {
    "re_control_user": Template(_re_control("User"), ("User:",)),
    "re_control_human": Template(_re_control("Human"), ("Human:",)),
    "transcript": Template(_transcript, ("\n\nHuman:",)),
    "args": Template(_args, ("###Human:", "\n\nHuman:")),
    "vicuna": Template(_vicuna, ("USER:",)),
    "plain": Template(_plain, strip=False),
}


def find_template(name: str) -> Template | None:
    """The fixed text of a name, or of a text with `{prompt}` in it; None for the checkpoint's chat template.

    Raises:
        ValueError: there is no such template.
    """
    if name == CHAT or name.endswith(".jinja"):
        return None
    if "{prompt}" in name:
        return Template(lambda prompt: name.replace("{prompt}", prompt.text), strip=False)
    if name in TEMPLATES:
        return TEMPLATES[name]
    known = [CHAT, *TEMPLATES]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    raise ValueError(
        f"template is {name!r}.{hint} It is one of {', '.join(known)}, a file that ends with .jinja, or a text of your "
        "own with {prompt} in it"
    )
