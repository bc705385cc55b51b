"""What a dataset is: settings that say where its rows are, and a pure rule that makes a prompt of one row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from aisp_ray.data import _source
from aisp_ray.types import Message

if TYPE_CHECKING:
    import ray.data

LOOK = 100  # rows that `check` looks at before it calls a column missing


@dataclass(frozen=True, slots=True)
class Parsed:
    """One row as a prompt, or the reason why it is none."""

    text: str = ""  # what a person reads
    messages: tuple[Message, ...] = ()  # the dialogue up to and including the last user turn
    meta: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    error: str | None = None  # why the row cannot be used
    rules: tuple[str, ...] = ()  # names of the parsing rules that fired
    key: str | None = None  # what deduplication compares; None: the text


@dataclass(frozen=True, kw_only=True)
class DataSpec(ABC):
    """Settings that every dataset has."""

    path: str = ""  # file, folder, glob, URI (s3:// gs:// hf:// ...), hub name, or demo:<name>
    name: str | None = None  # dataset name in prompt ids and rows; null: the dataset's own
    split: str = "test"  # split of a hub set or folder; part of the prompt ids
    subset: str | None = None  # configuration of a hub set
    revision: str | None = None  # commit or tag of a hub set; null takes the newest and pins it in the manifest
    format: str | None = None  # jsonl | json | csv | parquet; null goes by the file name
    max_prompt_tokens: int | None = None  # a longer prompt is an error row; null: what the policy's context leaves
    max_line_mb: int = 64  # MiB of a line, also of a compressed file; a longer one is an error row
    dedup: bool = True  # drop prompts that came before
    sample: int | None = None  # random prompts out of the whole set, in its order; null takes the first ones
    sample_seed: int = 0  # which random prompts

    own_name: ClassVar[str] = ""
    subset_is_folder: ClassVar[bool] = False  # the hub set has folders instead of configurations
    columns: ClassVar[tuple[str, ...]] = ()  # a set without any of these columns is refused at start
    rules: ClassVar[Mapping[str, str]] = {}  # rule -> what it did, as the end of "17 rows: ..."

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in _source.FORMATS:
            raise ValueError(f"format is {self.format!r}; it is one of {', '.join(_source.FORMATS)}, or null")
        if not 1 <= self.max_line_mb <= 1 << 20:
            raise ValueError(f"max_line_mb is {self.max_line_mb}; give the most MiB that a line may have, at least 1")
        for key in ("max_prompt_tokens", "sample"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; give at least 1, or null for no limit")
        if not self.split or "/" in self.split or self.split != self.split.strip():
            raise ValueError(f"split is {self.split!r}; give the name of one split, such as test")
        if self.name is not None and (not self.name or "/" in self.name):
            raise ValueError(f"name is {self.name!r}; it is part of prompt ids, give a word without a slash")

    @property
    def dataset(self) -> str:
        """The name in prompt ids and in the `dataset` column."""
        return self.name or self.own_name

    @property
    def wanted_columns(self) -> tuple[str, ...]:
        """Rows hold at least one of these columns."""
        return self.columns

    def source(self) -> _source.RowSource:
        """Where the rows are. Raises ValueError, one sentence, if nothing is there."""
        return _source.find(self)

    def check(self) -> list[str]:
        """What is wrong before anything is read at length, a sentence each: missing files, other columns."""
        try:
            source = self.source()
            seen = source.columns(LOOK)
        except ValueError as error:
            return [str(error)]
        if seen is None or any(column in seen for column in self.wanted_columns):
            return []
        wanted = " or ".join(repr(column) for column in self.wanted_columns)
        return [f"data.path={self.path}: no row has a column {wanted}; its columns are {', '.join(seen)}"]

    def pinned(self) -> DataSpec:
        """These settings with the newest commit of a hub set written in: what the manifest keeps."""
        source = self.source()
        commit = source.commit() if isinstance(source, _source.HubSet) else None
        return replace(self, revision=commit) if commit else self

    def fingerprint(self) -> dict[str, Any]:
        """What the rows depend on besides the settings: content of the files, or the hub commit. For the manifest."""
        return self.source().fingerprint()

    def read(self) -> ray.data.Dataset:
        """Rows as Ray Data, one column `record`: JSON of {"row": {...}} or {"error": "..."}, in input order."""
        from aisp_ray.data._ray import read_records

        return read_records(self.source())

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> Parsed:
        """The prompt of one row. Pure; never raises for what a row holds."""
