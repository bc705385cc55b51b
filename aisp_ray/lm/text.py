"""What is asked of a checkpoint's text side: its chat template keeps the text, its tokenizer fits the embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ASKED, _ANSWERED = "zebra question 17", "walrus answer 23"  # no template writes these by itself
_RAW = ("'type'", '"type"')  # a list of parts that was written out as it is
_SHOWN = 3  # tokens named in a message


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, called as it wants its turns.

    in_parts: whether a turn's content is a list of parts instead of a text.
    """

    tokenizer: Any
    in_parts: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # passed to the template besides the turns

    def render(self, turns: Sequence[tuple[str, str]], add_generation_prompt: bool = False) -> str:
        """The text of (role, content) turns. Raises whatever the template raises about them."""
        dialogue = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.in_parts else text}
            for role, text in turns
        ]
        return self.tokenizer.apply_chat_template(
            dialogue, tokenize=False, add_generation_prompt=add_generation_prompt, **self.options
        )


def open_chat(tokenizer: Any, where: str, answers: bool, options: Mapping[str, Any] | None = None) -> Chat:
    """The chat template in the form that keeps the text: contents as texts or, where those are lost, as parts.

    where: names the template in messages. answers: whether replies are read too, not prompts only.

    Raises:
        ValueError: it has a syntax error, or loses the text in either form.
    """
    from jinja2 import TemplateSyntaxError

    turns = [("user", _ASKED), ("assistant", _ANSWERED)][: 2 if answers else 1]
    refused = 0
    for in_parts in (False, True):
        chat = Chat(tokenizer, in_parts, options or {})
        try:
            shown = chat.render(turns, add_generation_prompt=not answers)
        except TemplateSyntaxError as error:
            raise ValueError(f"{where} has a syntax error in line {error.lineno}: {error.message}") from error
        except Exception:  # by rules of its own, which real dialogues may keep
            refused += 1
            continue
        whole = not any(mark in shown for mark in _RAW)
        if whole and all(text in shown for _, text in turns):
            return chat
    if refused == 2:
        return Chat(tokenizer, False, options or {})
    lost = "a turn's text" if not answers else "a question and its answer"
    raise ValueError(
        f"{where} does not write {lost} into what the model reads, neither from a text nor from a list of parts; "
        "choose another template"
    )


def damaged_template(path: str, options: Mapping[str, Any] | None = None) -> str | None:
    """What is wrong with a file that holds a chat template, as the end of a sentence; None: nothing found.

    Without a tokenizer, and so without its special tokens: `open_chat` looks again when there is one.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        # as transformers reads chat templates, with its block {% generation %}
        text = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text)
        rules = {"extensions": ["jinja2.ext.loopcontrols"], "trim_blocks": True, "lstrip_blocks": True}
        template = ImmutableSandboxedEnvironment(**rules).from_string(text)  # type: ignore[arg-type]
    except FileNotFoundError:
        return f": no such file (looked in {Path.cwd()})"
    except (OSError, UnicodeDecodeError) as error:
        return f" cannot be read: {error}"
    except TemplateSyntaxError as error:
        return f" has a syntax error in line {error.lineno}: {error.message}"
    try:
        open_chat(_Bare(template), "", False, options)
    except ValueError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class _Bare:
    """Renders a template like a tokenizer that has no special tokens."""

    template: Any

    def apply_chat_template(self, dialogue: Any, tokenize: bool, **options: Any) -> str:
        return str(self.template.render(messages=dialogue, **options))


def require_fitting_tokenizer(tokenizer: Any, num_embeddings: int, where: str) -> None:
    """Special tokens of other modalities may lie beyond the embedding, as Gemma-3's do: nothing writes them by itself,
    and a text that holds one is refused on its own (`unread`).

    Raises:
        ValueError: other tokens have no embedding; on a GPU such an id ends the process.
    """
    if len(tokenizer) <= num_embeddings:
        return
    added = tokenizer.added_tokens_decoder
    own = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= num_embeddings}
    spare = {index for index, token in added.items() if token.special} - own
    wrong = [token for index, token in sorted(beyond.items()) if index not in spare]
    if wrong:
        shown = ", ".join(map(repr, wrong[:_SHOWN])) + (", ..." if len(wrong) > _SHOWN else "")
        raise ValueError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {num_embeddings}, "
            f"so {shown} cannot be read; give the tokenizer that belongs to this model, or resize its embedding"
        )


def unread(ids: Sequence[int], num_embeddings: int) -> str | None:
    """Why these token ids cannot be read; None if they can."""
    beyond = max(ids, default=0)
    if beyond < num_embeddings:
        return None
    return f"the text holds token {beyond}, for which the model has no embedding (it has {num_embeddings})"
