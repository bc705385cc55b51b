"""How a dialogue and a response become the text that a reward model reads.

Roles come from the messages and never from their position, so a system turn or two user turns in a row are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aisp_ray.lm.text import open_chat
from aisp_ray.types import Message, Prompt

CHAT = "chat"  # the tokenizer's own chat template


@dataclass(frozen=True, slots=True)
class RewardTemplate:
    """A plain text format. `{}` stands for a turn's content; the response follows `opening` and is closed by `closing`.

    The beginning-of-sequence token is never part of these strings: it is put before the text where the tokenizer has
    one and `bos` is set. `eos` appends the end-of-sequence token.
    """

    user: str
    assistant: str
    opening: str
    closing: str = ""
    system: str | None = None  # None: a system turn is an error for this model
    bos: bool = True
    eos: bool = False


# UltraRM is used with three formats that give three different scores; the model card describes the first, its own
# worked examples (and RE-Control, arXiv 2406.05954) use the second, reward-bench (arXiv 2403.13787) scores the third.
TEMPLATES: dict[str, RewardTemplate] = {
    "ultrarm_card": RewardTemplate("Human: {}\n\n", "Assistant: {}\n\n", "Assistant: ", system="{}\n\n"),
    "ultrarm_examples": RewardTemplate("Human: {}\n", "Assistant: {}\n", "Assistant: ", system="{}\n"),
    "ultrarm_reward_bench": RewardTemplate(
        "User: {}\n\n", "Assistant: {}\n\n", "Assistant: ", closing="\n\n", system="{}\n\n", eos=True
    ),
    "eurus": RewardTemplate("[INST] {} [/INST]", " {}</s>", " "),
    "transcript": RewardTemplate("\n\nHuman: {}", "\n\nAssistant: {}", "\n\nAssistant: ", system="{}"),
    "plain": RewardTemplate("{}\n", "{}\n", "", system="{}\n"),
    "pair": RewardTemplate("{}\n", "{}\n", "", system="{}\n", bos=False),  # two segments of an encoder
}


def turns(prompt: Prompt) -> tuple[Message, ...]:
    """The dialogue of a prompt; one user turn where it has none."""
    return prompt.messages or (Message("user", prompt.text),)


class RewardRenderer(Protocol):
    """Text for a tokenizer that must add no special token of its own, unless `adds_bos` or `adds_eos` says so."""

    adds_bos: bool
    adds_eos: bool

    def render(self, prompt: Prompt, responses: Sequence[str]) -> tuple[str, list[str]]:
        """(the text up to the response, the whole text for each response).

        Raises:
            ValueError: this dialogue does not fit the template.
        """


class NamedRenderer:
    """Text by one of `TEMPLATES`."""

    def __init__(self, template: RewardTemplate):
        self.template = template
        self.adds_bos, self.adds_eos = template.bos, template.eos

    def render(self, prompt: Prompt, responses: Sequence[str]) -> tuple[str, list[str]]:
        head = "".join(self._turn(message) for message in turns(prompt)) + self.template.opening
        bare = head.removesuffix(" ")  # a response that brings its own space does not get a second one
        texts = [(bare if response.startswith(" ") else head) + response for response in responses]
        return head, [text + self.template.closing for text in texts]

    def _turn(self, message: Message) -> str:
        formats = {"user": self.template.user, "assistant": self.template.assistant, "system": self.template.system}
        if (form := formats.get(message.role)) is None:
            known = [role for role, given in formats.items() if given is not None]
            raise ValueError(f"a turn has the role {message.role!r}; this reward template knows {', '.join(known)}")
        return form.replace("{}", message.content)


class ChatRenderer:
    """Text by the tokenizer's own chat template, which writes all special tokens itself."""

    adds_bos = adds_eos = False

    def __init__(self, tokenizer: Any):
        self.chat = open_chat(tokenizer, "the chat template of this reward model's tokenizer", answers=True)

    def render(self, prompt: Prompt, responses: Sequence[str]) -> tuple[str, list[str]]:
        dialogue = [(turn.role, turn.content) for turn in turns(prompt)]
        try:
            head = self.chat.render(dialogue, add_generation_prompt=True)
            texts = [self.chat.render([*dialogue, ("assistant", response)]) for response in responses]
        except Exception as error:  # templates raise jinja errors of their own for dialogues they do not know
            raise ValueError(f"the chat template refuses this dialogue: {error}") from error
        return head, texts


def make_renderer(template: str, tokenizer: Any) -> RewardRenderer:
    """The renderer of a template name.

    Raises:
        ValueError: the chat template is asked for and the tokenizer has none, or it loses the text.
    """
    if template != CHAT:
        return NamedRenderer(TEMPLATES[template])
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"this reward model's tokenizer has no chat template; set template to one of {', '.join(TEMPLATES)}"
        )
    return ChatRenderer(tokenizer)
