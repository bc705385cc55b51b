"""A prompt as the exact text and token ids a policy reads, by a chat template or a fixed text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aisp_ray.errors import DataError
from aisp_ray.lm.text import Chat, open_chat
from aisp_ray.policy.templates import CHAT, Template, find_template, fold_system, merge_turns, turns_of
from aisp_ray.types import Message, Prompt


@dataclass(frozen=True)
class Renderer:
    """Prompts to texts and ids. A rendered text has one beginning-of-text token at most, whoever wrote it.

    tokenizer: of the checkpoint. name: see `templates`. system: a system turn for prompts without one. options: what
    the chat template is called with besides the turns, e.g. enable_thinking=False.
    """

    tokenizer: Any
    name: str = CHAT
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    _chat: Chat = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name.endswith(".jinja"):
            self.tokenizer.chat_template = Path(self.name).read_text(encoding="utf-8-sig")
        if self.template is None and not self.tokenizer.chat_template:
            raise ValueError(
                "policy.template=chat: this checkpoint has no chat template (a base model?); choose a fixed text such "
                "as policy.template=re_control_user or transcript, or give a .jinja file"
            )

        if self.template is None:
            where = f"policy.template={self.name}"
            object.__setattr__(self, "_chat", open_chat(self.tokenizer, where, False, self.options))

    @property
    def template(self) -> Template | None:
        """The fixed text; None for a chat template."""
        return find_template(self.name)

    def text(self, prompt: Prompt) -> str:
        """The text, without what the tokenizer adds.

        Raises:
            DataError: the chat template refuses these turns.
        """
        turns = turns_of(prompt, self.system)
        if self.template is not None:
            return self.template.write(_with_turns(prompt, turns))
        merged = merge_turns(turns)
        refusal: Exception | None = None
        for candidate in (merged, merge_turns(fold_system(merged))):
            try:
                return self._chatted(candidate, add_generation_prompt=True)
            except Exception as error:  # what a template raises by its own rules: no system role, roles not alternating
                refusal = error
        roles = ", ".join(turn.role for turn in merged)
        raise DataError(f"the chat template refuses turns of the roles {roles}: {refusal}")

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids: of a chat template as it is, of a fixed text after the tokenizer's beginning-of-text token."""
        text = self.text(prompt)
        bos = self.tokenizer.bos_token
        adds = self.template is not None and not (bos and text.startswith(bos))
        ids = list(self.tokenizer(text, add_special_tokens=adds)["input_ids"])
        if adds and ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(self.tokenizer.eos_token):
            ids.pop()  # some tokenizers close every text; a prompt goes on
        return ids

    def shown(self, prompt: Prompt) -> str:
        """The text with the beginning-of-text token that the tokenizer adds."""
        text, ids, bos = self.text(prompt), self.ids(prompt), self.tokenizer.bos_token
        return (
            bos + text if bos and ids and ids[0] == self.tokenizer.bos_token_id and not text.startswith(bos) else text
        )

    def turn_ends(self) -> set[int]:
        """The special tokens by which the chat template ends a reply; generation configs sometimes lack them."""
        if self.template is not None:
            return set()
        asked = [Message("user", "x"), Message("assistant", "y")]
        try:
            opened = self._chatted(asked[:1], add_generation_prompt=True)
            closed = self._chatted(asked, add_generation_prompt=False)
        except Exception:  # an exotic template: the generation config has to do
            return set()
        if not closed.startswith(opened + "y"):
            return set()
        ids = self.tokenizer(closed[len(opened) + 1 :], add_special_tokens=False)["input_ids"]
        return {ids[0]} & set(self.tokenizer.all_special_ids) if ids else set()

    def _chatted(self, turns: Sequence[Message], add_generation_prompt: bool) -> str:
        return self._chat.render([(turn.role, turn.content) for turn in turns], add_generation_prompt)


def _with_turns(prompt: Prompt, turns: tuple[Message, ...]) -> Prompt:
    return prompt if turns == prompt.messages else replace(prompt, messages=turns)
