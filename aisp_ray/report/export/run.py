"""Data sets to train on, from an evaluation: preference pairs, demonstrations, candidates with rewards.

They are Parquet in the layout that `datasets.load_dataset(<to>)` reads, with the columns that TRL's trainers take:
`prompt chosen rejected` (DPO, reward modelling), `prompt completion` (SFT). Preference pairs and candidates are made
of all particles, so the evaluation must have been run with run.particles=true; SFT sets need its rows only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from aisp_ray.files import Output, inside, split_query, to_table
from aisp_ray.report.rejudge import messages_of
from aisp_ray.report.rows import output_list, particle_files, read_files, read_rows
from aisp_ray.results import PARTICLE_SCHEMA
from aisp_ray.rng import derive_seed

FORMATS = ("preference", "sft", "candidates")
_SHARD_ROWS = 50_000


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Keys of an export."""

    out: tuple[str, ...] = ()  # folders or URIs that jobs/eval.py wrote
    format: str = "preference"  # preference | sft | candidates
    to: str | None = None  # folder or URI of the data set; null: <first out>/export/<format>
    methods: tuple[str, ...] = ()  # methods whose responses are used; empty takes all, pooled per prompt
    rejected: str = "worst"  # preference: worst (lowest reward of the pool) | base (first draw of the base method)
    base: str = "best_of_n"  # whose first draw is the plain policy's answer, for rejected=base
    pairs: int = 1  # preference: pairs a prompt, best with worst, second best with second worst ...
    min_margin: float = 0.0  # preference: least difference of rewards within a pair
    max_margin: float | None = None  # preference: largest difference; null for no limit
    min_reward: float | None = None  # least reward of a chosen response or demonstration; null for no limit
    complete: bool = True  # leave out responses that were cut by the length limit
    messages: bool = True  # prompts and responses as chat messages; false: as texts
    test_share: float = 0.0  # share of prompts, by a hash of their text, that goes to a test split
    push_to: str | None = None  # also push to this data set on the hub, user/name; null does not
    private: bool = True  # whether a data set that push_to creates is private

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out is empty; give out=<the folder that jobs/eval.py wrote>")
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; it is one of {', '.join(FORMATS)}")
        if self.rejected not in ("worst", "base"):
            raise ValueError(f"rejected is {self.rejected!r}; it is worst or base")
        if self.pairs < 1 or (self.pairs > 1 and self.rejected == "base"):
            raise ValueError(f"pairs is {self.pairs}; give 1 or more, and 1 with rejected=base: there is one such draw")
        if self.min_margin < 0 or (self.max_margin is not None and self.max_margin < self.min_margin):
            raise ValueError(f"min_margin is {self.min_margin} and max_margin {self.max_margin}; 0 <= min <= max")
        if not 0 <= self.test_share < 1:
            raise ValueError(f"test_share is {self.test_share}; it lies in [0, 1)")

    @property
    def folder(self) -> str:
        """Where the data set goes."""
        return "".join(split_query(self.to or inside(output_list(self.out)[0], f"export/{self.format}")))


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


def export(settings: ExportSettings) -> dict[str, int]:
    """Write the data set and return its rows by split.

    Raises:
        ValueError: there are no rows, no particles where they are needed, or nothing passes the filters. An export
            that was in the folder is then still there.
    """
    check_methods(settings)
    make = {"preference": preference_rows, "sft": sft_rows, "candidates": candidate_rows}[settings.format]
    needs_particles = settings.format != "sft"
    parts: dict[str, list[dict[str, Any]]] = {}
    writer = ShardWriter(settings.folder, schema_of(settings))
    for pool in pools(settings, needs_particles):
        split = split_of(pool, settings.test_share)
        kept = parts.setdefault(split, [])
        kept += make(pool, settings)
        if len(kept) >= _SHARD_ROWS:
            writer.write(split, kept)
            kept.clear()
    for split, kept in parts.items():
        writer.write(split, kept)
    if not writer.rows:
        raise ValueError("nothing is left to export: every prompt failed, or no response passed the filters")
    writer.card(settings)
    if settings.push_to:
        push(settings, writer.rows)
    return dict(writer.rows)


def check_methods(settings: ExportSettings) -> None:
    """Raises ValueError for a method that no row is of."""
    known = {name for out in output_list(settings.out) for name in read_rows(out)["method"].unique().to_pylist()}
    asked_for = [("methods", name) for name in settings.methods]
    if settings.format == "preference" and settings.rejected == "base":
        asked_for.append(("base", settings.base))
    for key, name in asked_for:
        if name not in known:
            raise ValueError(f"{key}={name}: no rows of it; the rows are of {', '.join(sorted(known))}")


# ---------------------------------------------------------------- rows of each format


def preference_rows(pool: PromptPool, settings: ExportSettings) -> Iterator[dict[str, Any]]:
    """`prompt chosen rejected`: the best responses against the worst, or against the plain policy's answer."""
    ranked = distinct(pool.responses, settings)
    if settings.rejected == "base":
        low = [pool.first] if pool.first is not None and usable(pool.first, settings) else []
    else:
        low = ranked[::-1][: len(ranked) // 2]
    for chosen, rejected in list(zip(ranked, low, strict=False))[: settings.pairs]:
        margin = chosen.reward - rejected.reward
        within = settings.min_margin <= margin <= (math.inf if settings.max_margin is None else settings.max_margin)
        if margin > 0 and within and chosen.text != rejected.text and _good(chosen, settings):
            yield {
                "prompt": asked(pool.prompt, settings.messages),
                "chosen": said(chosen.text, settings.messages),
                "rejected": said(rejected.text, settings.messages),
                "reward_chosen": chosen.reward,
                "reward_rejected": rejected.reward,
                "method_chosen": chosen.method,
                "method_rejected": rejected.method,
                **_origin(pool),
            }


def sft_rows(pool: PromptPool, settings: ExportSettings) -> Iterator[dict[str, Any]]:
    """`prompt completion`: the best response of each prompt."""
    for best in distinct(pool.responses, settings)[:1]:
        if _good(best, settings):
            yield {
                "prompt": asked(pool.prompt, settings.messages),
                "completion": said(best.text, settings.messages),
                "reward": best.reward,
                "method": best.method,
                **_origin(pool),
            }


def candidate_rows(pool: PromptPool, settings: ExportSettings) -> Iterator[dict[str, Any]]:
    """`prompt completion reward` of every scored response, best first, repeats of a text left out."""
    for response in distinct(pool.responses, settings):
        if _good(response, settings):
            yield {
                "prompt": asked(pool.prompt, settings.messages),
                "completion": said(response.text, settings.messages),
                "reward": response.reward,
                "method": response.method,
                "iteration": response.iteration,
                "particle": response.particle,
                "finish_reason": response.finish_reason,
                "logprob": response.logprob,
                **_origin(pool),
            }


def distinct(responses: Sequence[Response], settings: ExportSettings) -> list[Response]:
    """Usable responses, best first, each text once (its first draw); ties stay in the order of drawing."""
    first: dict[str, Response] = {}
    for response in responses:
        if usable(response, settings):
            first.setdefault(response.text, response)
    return sorted(first.values(), key=lambda response: -response.reward)


def usable(response: Response, settings: ExportSettings) -> bool:
    """Whether it holds text and, where that is asked for, came to its own end."""
    return bool(response.text.strip()) and not (settings.complete and response.finish_reason == "length")


def asked(prompt: str, messages: bool) -> Any:
    """A prompt as TRL takes it: chat messages (a text with Human and Assistant turns is taken apart), or the text."""
    if not messages:
        return prompt
    return [{"role": turn.role, "content": turn.content} for turn in messages_of(prompt)]


def said(text: str, messages: bool) -> Any:
    """A response as TRL takes it."""
    return [{"role": "assistant", "content": text}] if messages else text


def _good(response: Response, settings: ExportSettings) -> bool:
    return settings.min_reward is None or response.reward >= settings.min_reward


def _origin(pool: PromptPool) -> dict[str, Any]:
    return {"prompt_id": pool.prompt_id, "dataset": pool.dataset}


def schema_of(settings: ExportSettings) -> pa.Schema:
    """Columns and types of a format, the same for every shard."""
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    text = pa.list_(turn) if settings.messages else pa.string()
    names = {
        "preference": {
            **dict.fromkeys(("prompt", "chosen", "rejected"), text),
            **dict.fromkeys(("reward_chosen", "reward_rejected"), pa.float64()),
            **dict.fromkeys(("method_chosen", "method_rejected"), pa.string()),
        },
        "sft": {"prompt": text, "completion": text, "reward": pa.float64(), "method": pa.string()},
        "candidates": {
            **{"prompt": text, "completion": text, "reward": pa.float64(), "method": pa.string()},
            **{"iteration": pa.int64(), "particle": pa.int64(), "finish_reason": pa.string(), "logprob": pa.float64()},
        },
    }[settings.format]
    return pa.schema({**names, "prompt_id": pa.string(), "dataset": pa.string()})


# ---------------------------------------------------------------- prompts with their responses


def pools(settings: ExportSettings, particles: bool) -> Iterator[PromptPool]:
    """Every prompt with its scored responses, output by output, a chunk of prompts in memory at a time."""
    for out in output_list(settings.out):
        yield from _particle_pools(out, settings) if particles else _row_pools(out, settings)


def _row_pools(out: str, settings: ExportSettings) -> Iterator[PromptPool]:
    """Pools of the selected responses, from the rows."""
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
    """Pools of all particles. Files that hold the same positions of the input are read together."""
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


def split_of(pool: PromptPool, test_share: float) -> str:
    """train or test, by the prompt's text: the same prompt of another run, seed or method goes to the same side."""
    return "test" if derive_seed("export split", pool.prompt) / 2**64 < test_share else "train"


# ---------------------------------------------------------------- files


class ShardWriter:
    """Writes <to>/data/<split>-<number>.parquet and the card beside them."""

    def __init__(self, to: str, schema: pa.Schema):
        self.to, self.schema = to, schema
        self.output = Output(to, unfinished=".")
        self.rows: dict[str, int] = {}
        self._shards: dict[str, int] = {}
        self._earlier()

    def _earlier(self) -> list[str]:
        """Shards of an earlier export, which go when there is something to put in their place.

        Raises:
            ValueError: there is something else, which is not ours to remove.
        """
        names = self.output.names("data")
        others = [name for name in names if not re.fullmatch(r"(train|test)-\d{5}\.parquet", name)]
        if others:
            raise ValueError(
                f"to={self.to}: its folder data holds {others[0]}, which no export wrote; give another `to`"
            )
        return names

    def write(self, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        if not self._shards:
            for name in self._earlier():
                self.output.remove(f"data/{name}")
        number = self._shards[split] = self._shards.get(split, -1) + 1
        self.output.write_table(f"data/{split}-{number:05d}.parquet", to_table(rows, self.schema))
        self.rows[split] = self.rows.get(split, 0) + len(rows)

    def card(self, settings: ExportSettings) -> None:
        """README.md: where the data come from, and the splits for `datasets`."""
        splits = "".join(
            f"      - split: {split}\n        path: data/{split}-*.parquet\n" for split in sorted(self.rows)
        )
        counts = ", ".join(f"{split} {rows:,}" for split, rows in sorted(self.rows.items()))
        kept = {key: value for key, value in asdict(settings).items() if key not in ("push_to", "private")}
        text = (
            f"---\nconfigs:\n  - config_name: default\n    data_files:\n{splits}---\n\n"
            f"# {settings.format} set of {', '.join(settings.out)}\n\n"
            f"Made by aisp-ray (`jobs/export.py`). Rows: {counts}. Responses are a language model's, rewards a reward "
            f"model's; neither was checked by people.\n\n```json\n{json.dumps(kept, indent=1)}\n```\n"
        )
        self.output.write("README.md", text.encode())


def push(settings: ExportSettings, splits: Mapping[str, int]) -> None:
    """Push the data set to the hub.

    Raises:
        ValueError: `to` is not a local folder.
    """
    from datasets import load_dataset

    if "://" in settings.folder:
        raise ValueError(f"push_to={settings.push_to} needs a local `to`, and it is {settings.folder}")
    files = {split: f"{settings.folder}/data/{split}-*.parquet" for split in splits}
    load_dataset("parquet", data_files=files).push_to_hub(settings.push_to, private=settings.private)
