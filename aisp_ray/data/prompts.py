"""Prompts of any origin: one column with text or chat messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from aisp_ray.data._messages import decoded, read_messages
from aisp_ray.data._row import text_of
from aisp_ray.data._transcript import is_dialogue, read_turns, split_reply, write_turns
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.types import Message


@dataclass(frozen=True, kw_only=True)
class Prompts(DataSpec):
    """Settings of a set of prompts in JSON lines, JSON, CSV, Parquet, a saved `datasets` folder or on the hub."""

    split: str = "train"  # split of a hub set or folder; part of the prompt ids
    column: str | None = None  # column with a text or a list of messages; null takes prompt, else messages
    id_column: str | None = None  # column kept as the row's own id in the prompt's meta
    keep: tuple[str, ...] = ()  # columns kept for verifiers and judges: answer, or answer=solution to rename
    dialogues: bool = True  # read a text that starts with "Human:" as a dialogue of turns
    system: str | None = None  # a system message put before each prompt that has none

    own_name = "prompts"
    rules: ClassVar = {
        "reply_cut": "assistant turns at the end, cut off",
        "dialogue": 'a text with "Human:" turns, read as a dialogue',
    }

    @property
    def dataset(self) -> str:
        place = re.sub(r"(?<=://)[^/]*@", "", self.path)  # a password is no name
        return self.name or Path(place.rstrip("/*").split(":")[-1]).name.split(".")[0] or self.own_name

    @property
    def wanted_columns(self) -> tuple[str, ...]:
        return (self.column,) if self.column else ("prompt", "messages")

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        column = next((name for name in self.wanted_columns if row.get(name) is not None), self.wanted_columns[0])
        value, unreadable = decoded(row.get(column))
        turns: tuple[Message, ...] = ()
        if unreadable:
            error: str | None = f"column {column!r} {unreadable}"
        elif isinstance(value, str):
            text, error = text_of(row, column)
            turns = read_turns(text) if self.dialogues and is_dialogue(text) else (Message("user", text),)
        elif isinstance(value, list | tuple) or value is not row.get(column):
            turns, error = read_messages(value)
        else:
            _, error = text_of(row, column)
        if error:
            return Parsed(error=error)
        asked, reply = split_reply(turns)
        if not asked or asked[-1].role != "user" or not asked[-1].content.strip():
            return Parsed(error="the dialogue does not end with a user turn that holds text")
        if self.system and asked[0].role != "system":
            asked = (Message("system", self.system), *asked)
        text = asked[0].content if len(asked) == 1 else write_turns(asked)
        rules = ("reply_cut",) * bool(reply) + ("dialogue",) * (isinstance(value, str) and len(turns) > 1)
        return Parsed(text, asked, self._meta(row), rules=rules)

    def _meta(self, row: Mapping[str, Any]) -> dict[str, Any]:
        named = [item.partition("=")[::2] for item in self.keep]
        meta = {name: row[source or name] for name, source in named if (source or name) in row}
        if self.id_column and row.get(self.id_column) is not None:
            meta["id"] = row[self.id_column]
        return meta
