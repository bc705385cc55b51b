"""The data card, README.md: splits for `datasets`, counts, what was dropped, where the rows come from, licences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from aisp_ray import __version__
from aisp_ray.errors import redacted
from aisp_ray.files import MANIFEST
from aisp_ray.metrics._words import words
from aisp_ray.report.export.drops import Drops
from aisp_ray.report.export.filters import SPLITS
from aisp_ray.report.export.licences import UNKNOWN, licence_of
from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.export.shards import CONTROL, DATA, ShardWriter
from aisp_ray.report.rows import output_list, read_json

CONFIGS = {DATA: "default", CONTROL: "control"}
_TEXTS = ("chosen", "rejected", "completion")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_TASKS = {"preference": "reinforcement-learning", "sft": "text-generation", "candidates": "text-generation"}


class Contents:
    """What the rows hold, counted as they are written."""

    def __init__(self) -> None:
        self.datasets: Counter[str] = Counter()
        self.methods: Counter[str] = Counter()
        self._numbers: dict[str, list[np.ndarray]] = {}

    def seen(self, tables: Iterator[tuple[pa.Table, np.ndarray]]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """The same tables."""
        for table, positions in tables:
            self._count(table)
            yield table, positions

    def _count(self, table: pa.Table) -> None:
        self.datasets.update(table["dataset"].to_pylist())
        self.methods.update(table["method_chosen" if "chosen" in table.column_names else "method"].to_pylist())
        for name in table.column_names:
            if name.startswith("reward"):
                self._add(name, table[name].to_numpy())
            elif name in _TEXTS:
                self._add(f"words of {name}", np.array([len(words(text)) for text in _texts(table[name])]))
        if "reward_chosen" in table.column_names:
            self._add("margin", table["reward_chosen"].to_numpy() - table["reward_rejected"].to_numpy())

    def _add(self, name: str, values: np.ndarray) -> None:
        self._numbers.setdefault(name, []).append(values)

    def quantiles(self) -> dict[str, list[float]]:
        """Mean, and the 5, 50 and 95 % quantiles of every number of the rows."""
        joined = {name: np.concatenate(parts) for name, parts in self._numbers.items()}
        return {name: [v.mean(), *np.quantile(v, (0.05, 0.5, 0.95))] for name, v in joined.items() if len(v)}


def _texts(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_string(column.type):
        return column.to_pylist()
    return pc.struct_field(pc.list_flatten(column), "content").to_pylist()


def write_card(writer: ShardWriter, settings: ExportSettings, drops: Drops, contents: Contents) -> None:
    """Write `<to>/README.md`."""
    text = f"---\n{_front_matter(writer, settings)}---\n\n{_body(writer, settings, drops, contents)}"
    writer.output.write("README.md", redacted(text).encode())  # it may be pushed to a hub


def _front_matter(writer: ShardWriter, settings: ExportSettings) -> str:
    """What the hub and `datasets` read."""
    configs = [
        {
            "config_name": CONFIGS[folder],
            "data_files": [{"split": s, "path": f"{folder}/{s}-*.parquet"} for s in SPLITS if s in rows],
        }
        for folder, rows in writer.rows.items()
    ]
    total = sum(writer.rows[DATA].values())
    size = next((name for most, name in _SIZES if total < most), "n>1M")
    kept: dict[str, Any] = {"license": settings.license} if settings.license else {}
    kept |= {"task_categories": [_TASKS[settings.format]], "tags": ["aisp-ray", "synthetic", settings.format]}
    return yaml.safe_dump({**kept, "size_categories": [size], "configs": configs}, sort_keys=False, allow_unicode=True)


def _body(writer: ShardWriter, settings: ExportSettings, drops: Drops, contents: Contents) -> str:
    manifests = {out: read_json(out, MANIFEST) for out in output_list(settings.out)}
    kept = {key: value for key, value in asdict(settings).items() if key not in ("push_to", "private")}
    parts = [
        f"# {settings.format} set of {', '.join(settings.out)}",
        f"Made by aisp-ray {__version__} (`jobs/export.py`). Responses are a language model's, rewards a reward "
        "model's; neither was checked by people.",
        "## Rows",
        *(_splits(CONFIGS[folder], rows) for folder, rows in writer.rows.items()),
        _table(("dataset", "rows"), contents.datasets.most_common()),
        _table(("method", "rows"), contents.methods.most_common()),
        _table(
            ("number", "mean", "5 %", "50 %", "95 %"),
            [(name, *(f"{value:.4g}" for value in values)) for name, values in contents.quantiles().items()],
        ),
        *(["The configuration `control` holds as many rows, drawn at random from all rows before the filters on rows."]
          if settings.control else []),
        "## Filters",
        "\n".join(f"- {line}" for line in drops.lines()),
        "## Sources",
        _sources(manifests, online=settings.push_to is not None),
        "## How it was made",
        f"```json\n{json.dumps(kept, indent=1)}\n```\n",
    ]  # fmt: skip
    return "\n\n".join(parts)


def _splits(config: str, rows: Mapping[str, int]) -> str:
    return f"Configuration `{config}`: " + ", ".join(f"{name} {rows[name]:,}" for name in SPLITS if name in rows)


def _sources(manifests: Mapping[str, Mapping[str, Any]], online: bool) -> str:
    """One line per model and prompt set of every output, with its licence."""
    lines = []
    for out, manifest in manifests.items():
        config = manifest.get("config") or {}
        data = (config.get("data") or {}).get("path")
        named = [
            *[(role, (config.get(role) or {}).get("model"), "model") for role in ("policy", "reward")],
            *[(f"judge {name}", keys.get("model"), "model") for name, keys in (config.get("judges") or {}).items()],
            ("prompts", data, "dataset"),
        ]
        seed, version = config.get("seed"), manifest.get("aisp_ray", "unknown")
        for role, name, kind in named:
            lines.append((out, role, name or "-", licence_of(name, kind, online) if name else "-"))
        lines.append((out, "run", f"seed {seed}, aisp-ray {version}", "-"))
    note = f"A licence is what the model's or set's own card names; {UNKNOWN} where no card could be read.\n\n"
    return note + _table(("output", "role", "name", "licence"), lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
