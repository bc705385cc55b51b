"""Every evaluation ever made in an output: (setting, prompt) -> row. What a killed search resumes from.

    <out>/evaluations/part-<run>-<serial>.parquet   result rows and the setting behind each, written whole
    <out>/manifest.json                             what decides an evaluation besides its setting; the last search
    <out>/trials.parquet  summary.json  best.yaml  report/

Rewards are pure functions of setting, prompt and seed, so a row is right for any search that asks for it: another
search, more trials or more prompts in the same output pay only for what is new. A prompt is its id and its text: the
row of another text under the same id is never taken for it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from aisp_ray.errors import RefusedError
from aisp_ray.files import MANIFEST, Output, as_json, differences, mixed, read_manifest, to_table
from aisp_ray.results import ROW_SCHEMA
from aisp_ray.types import Prompt

FOLDER = "evaluations"
SCHEMA = pa.schema(
    [
        pa.field("setting", pa.string(), metadata={"doc": "hash of all keys of the method"}),
        pa.field("settings", pa.string(), metadata={"doc": "JSON of all keys of the method"}),
        *ROW_SCHEMA,
    ],
    metadata=ROW_SCHEMA.metadata,
)
Key = tuple[str, str, str]  # setting hash, prompt id, prompt text


def setting_hash(described: Mapping[str, Any]) -> str:
    """16 hex digits of all keys of a method."""
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Evaluations:
    """The evaluations of an output, in memory and on disk. One thread uses it."""

    def __init__(self, output: Output):
        self.output = output
        self.rows: dict[Key, dict[str, Any]] = {}
        self.num_new = 0  # made since it was opened
        self._new: list[dict[str, Any]] = []
        self._name = uuid.uuid4().hex[:8]  # two searches at once in one output write files of their own
        self._next = 0

    def open(
        self,
        fingerprint: Mapping[str, Any],
        on_mismatch: str = "refuse",
        retry_errors: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Read what is there; retry_errors leaves out rows whose status is error.

        about: what the manifest says of the search besides the fingerprint.

        Raises:
            RefusedError: it was made under another fingerprint, and on_mismatch is refuse; or it is an evaluation's; or
                its manifest cannot be read.
        """
        now, before = as_json(fingerprint), read_manifest(self.output)
        if before is not None and "methods" in before:
            raise RefusedError(f"{self.output.out} holds an evaluation (jobs/eval.py); give another out")
        lines = [] if before is None else differences(before.get("fingerprint"), now)
        kept = mixed(f"{self.output.out} holds evaluations", before or {}, lines, on_mismatch)
        if kept is None:
            self.output.filesystem.delete_dir_contents(f"{self.output.root}/{FOLDER}", missing_dir_ok=True)
        said = {"ignored_differences": kept} if kept else {}
        self.output.write_json(MANIFEST, {"fingerprint": now, **(about or {}), **said})
        self._read_parts(retry_errors)

    def _read_parts(self, retry_errors: bool) -> None:
        """Parts have random names, so no order says which row is newer: one with a value is kept over an error."""
        for kind, serial in self.output.parts(FOLDER):
            for row in self.output.read_part(kind, serial, folder=FOLDER).to_pylist():
                key = row["setting"], row["prompt_id"], row["prompt"]
                if row["status"] != "error" or not (retry_errors or key in self.rows):
                    self.rows[key] = row

    def add(self, setting: str, described: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """A new evaluation; on disk after the next `flush`."""
        full = {"setting": setting, "settings": json.dumps(described, sort_keys=True, default=str), **row}
        self.rows[setting, row["prompt_id"], row["prompt"]] = full
        self._new.append(full)
        self.num_new += 1

    def get(self, setting: str, prompt: Prompt) -> dict[str, Any] | None:
        return self.rows.get((setting, prompt.prompt_id, prompt.text))

    def flush(self) -> None:
        """Write what is new as one more part file."""
        if self._new:
            self.output.write_part(to_table(self._new, SCHEMA), self._name, self._next, FOLDER)
            self._next += 1
            self._new = []

    def sums(self, setting: str, prompts: Sequence[Prompt], columns: Sequence[str]) -> dict[str, float]:
        """Column sums over a setting's evaluations of these prompts."""
        rows = [row for row in (self.get(setting, prompt) for prompt in prompts) if row is not None]
        return {name: float(sum(row[name] or 0 for row in rows)) for name in columns}
