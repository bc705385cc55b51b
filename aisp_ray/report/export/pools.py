"""Every prompt of an evaluation with its scored responses, a chunk of prompts in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.rows import output_list, particle_files, read_files, read_rows
from aisp_ray.results import PARTICLE_SCHEMA


@dataclass(frozen=True, slots=True)
class Response:
    """One scored response of a prompt."""

    text: str
    reward: float
    method: str
    finish_reason: str | None
    iteration: int | None = None
    particle: int | None = None
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class PromptPool:
    """A prompt with what was drawn for it."""

    prompt_id: str
    dataset: str
    prompt: str
    responses: tuple[Response, ...]
    first: Response | None = None  # the base method's first draw


def pools(settings: ExportSettings) -> Iterator[PromptPool]:
    """The pools of all outputs: of the selected responses for format=sft, else of all particles."""
    for out in output_list(settings.out):
        yield from _row_pools(out, settings) if settings.format == "sft" else _particle_pools(out, settings)


def _row_pools(out: str, settings: ExportSettings) -> Iterator[PromptPool]:
    names = ("prompt_id", "dataset", "prompt", "method", "response", "reward", "status", "finish_reason")
    found: dict[tuple[str, str, str], list[Response]] = {}
    for row in read_rows(out).select(names).to_pylist():
        if row["status"] == "ok" and _wanted(row, settings):
            at = (row["prompt_id"], row["dataset"], row["prompt"])
            response = Response(row["response"], row["reward"], row["method"], row["finish_reason"])
            found.setdefault(at, []).append(response)
    for (prompt_id, dataset, prompt), responses in found.items():
        yield PromptPool(prompt_id, dataset, prompt, tuple(responses))


def _particle_pools(out: str, settings: ExportSettings) -> Iterator[PromptPool]:
    """Files that hold the same positions of the input are read together."""
    rows = read_rows(out).select(["prompt_id", "dataset", "prompt"]).to_pylist()
    prompts = {row["prompt_id"]: (row["dataset"], row["prompt"]) for row in rows}
    groups: dict[str, list[str]] = {}
    for name in particle_files(out, "run the evaluation with run.particles=true, or export format=sft"):
        groups.setdefault(name.rpartition("-")[2], []).append(name)  # part-<method>-<chunk>.parquet
    for group in groups.values():
        table = read_files(out, group, PARTICLE_SCHEMA)
        order = ("ordinal", "method", "iteration", "particle")  # of drawing
        particles = table.sort_by([(name, "ascending") for name in order]).to_pylist()
        yield from _group_pools(particles, prompts, settings)


def _group_pools(
    particles: Sequence[Mapping[str, Any]], prompts: Mapping[str, tuple[str, str]], settings: ExportSettings
) -> Iterator[PromptPool]:
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for row in particles:
        if row["prompt_id"] in prompts and row["reward"] is not None and math.isfinite(row["reward"]):
            by_prompt.setdefault(row["prompt_id"], []).append(row)
    for prompt_id, rows in by_prompt.items():
        drawn = (row for row in rows if row["method"] == settings.base)
        base = next((row for row in drawn if (row["iteration"], row["particle"]) == (0, 0)), None)
        responses = tuple(_response(row) for row in rows if _wanted(row, settings))
        yield PromptPool(prompt_id, *prompts[prompt_id], responses, _response(base) if base is not None else None)


def _wanted(row: Mapping[str, Any], settings: ExportSettings) -> bool:
    return not settings.methods or row["method"] in settings.methods


def _response(row: Mapping[str, Any]) -> Response:
    return Response(
        text=row["response"] or "",
        reward=row["reward"],
        method=row["method"],
        finish_reason=row["finish_reason"],
        iteration=row["iteration"],
        particle=row["particle"],
        logprob=row["logprob"],
    )
