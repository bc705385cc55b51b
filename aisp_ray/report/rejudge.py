"""Scores responses of finished runs with reward models that the search did not see.

Two uses: a judge that was not part of the run (a language model that compares with the baseline's response, say), and
the over-optimisation view: what the judge thinks of the best response after every iteration (Gao et al., 2023, arXiv
2210.10760). The second needs the particles of the run (run.particles=true).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aisp_ray.report.rows import particle_files, read_files
from aisp_ray.results import JUDGE_ERRORS, NO_REASON, PARTICLE_SCHEMA
from aisp_ray.types import Message, Prompt, Scores

if TYPE_CHECKING:
    from aisp_ray.rewards.base import RewardSpec

log = logging.getLogger(__name__)
BASELINE = "baseline"  # key of a prompt's meta with the baseline's response: a judge's `compare_with`
JUDGED = "judged"  # column with JSON: judge -> its score of the best response after each iteration
SearchKey = tuple[str, str, str]  # output, prompt id, method
Score = tuple[float | None, str | None]  # a judge's score of a response, or why there is none
_UNASKED: Score = (None, None)
_DRAWN = ("prompt_id", "method", "iteration", "particle", "reward", "response")  # columns of particles


@dataclass(frozen=True, kw_only=True)
class Rejudging:
    """What to score again."""

    judges: Mapping[str, RewardSpec]
    baseline: str = "best_of_n"  # the method whose response comparing judges get
    curves: bool = False  # also the best response after every iteration
    device: str = "cpu"  # cpu | cuda


def rejudge(rows: pa.Table, manifests: Mapping[str, Mapping[str, Any]], how: Rejudging) -> pa.Table:
    """`rows` with the judges' scores appended to judge_names and judge_rewards, and in `JUDGED` over iterations.

    Why a row's response has no score is in its `extra`, under `JUDGE_ERRORS`, as in a run.

    Raises:
        ValueError: a judge cannot be loaded, breaks or scores no response at all, or the curves have no particles.
    """
    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    keys: list[SearchKey] = list(zip(columns["out"], columns["prompt_id"], columns["method"], strict=True))
    steps = best_responses(rows, manifests) if how.curves else {}
    prompts = prompts_of(columns, manifests, how.baseline)
    texts: dict[tuple[str, str], dict[str, None]] = {}
    for (out, prompt_id, method), response in zip(keys, columns["response"], strict=True):
        found = texts.setdefault((out, prompt_id), {})
        found |= dict.fromkeys(
            text for text in (response, *steps.get((out, prompt_id, method), ())) if text is not None
        )
    names, rewards, extras = (list(columns[name]) for name in ("judge_names", "judge_rewards", "extra"))
    judged: list[dict[str, list]] = [{} for _ in keys]
    for judge, spec in how.judges.items():
        scores = _score_all(judge, spec, prompts, texts, how.device)
        for i, (key, response) in enumerate(zip(keys, columns["response"], strict=True)):
            own = scores.get(key[:2], {})
            kept = [(n, r) for n, r in zip(names[i] or (), rewards[i] or (), strict=True) if n != judge]
            score, error = own.get(response, _UNASKED) if response is not None else _UNASKED
            kept.append((judge, score))
            names[i], rewards[i] = [n for n, _ in kept], [r for _, r in kept]
            extras[i] = _with_error(extras[i], judge, error)
            judged[i][judge] = [own[text][0] if text in own else None for text in steps.get(key, ())]
    schema = rows.schema
    for name, values in (("judge_names", names), ("judge_rewards", rewards), ("extra", extras)):
        at = schema.get_field_index(name)
        rows = rows.set_column(at, schema.field(at), pa.array(values, schema.field(at).type))
    return rows.append_column(JUDGED, pa.array([json.dumps(one) for one in judged], pa.string()))


def _with_error(extra: str | None, judge: str, error: str | None) -> str | None:
    """A row's `extra` with why this judge has no score of it, or without its earlier reason."""
    values = json.loads(extra) if extra else {}
    errors = {name: text for name, text in (values.pop(JUDGE_ERRORS, None) or {}).items() if name != judge}
    if error is not None:
        errors[judge] = error
    if errors:
        values[JUDGE_ERRORS] = errors
    return json.dumps(values) if values else None


def _score_all(
    judge: str,
    spec: RewardSpec,
    prompts: Mapping[tuple[str, str], Prompt],
    texts: Mapping[tuple[str, str], Mapping[str, None]],
    device: str,
) -> dict[tuple[str, str], dict[str, Score]]:
    """(output, prompt id) -> response -> score. Each different response is scored once."""
    from aisp_ray.rewards.base import ScoreRequest
    from aisp_ray.worker import RewardWorker

    try:
        worker = RewardWorker(lambda: spec.load(device))
        waiting = {
            at: worker.submit(ScoreRequest(prompts[at], tuple(own))) for at, own in texts.items() if own
        }  # fmt: skip
        found = {at: future.result() for at, future in waiting.items()}
        worker.close()
    except Exception as error:
        raise ValueError(f"judges={judge}: {error}") from error
    scored = {at: dict(zip(texts[at], _scores_of(scores), strict=True)) for at, scores in found.items()}
    every = [one for own in scored.values() for one in own.values()]
    if every and all(score is None for score, _ in every):
        raise ValueError(f"judges={judge}: none of the {len(every)} responses got a score; the first: {every[0][1]}")
    return scored


def _scores_of(scores: Scores) -> Iterator[Score]:
    errors = scores.errors or (None,) * len(scores.rewards)
    for reward, error in zip(scores.rewards, errors, strict=True):
        yield (reward, None) if math.isfinite(reward) else (None, error or NO_REASON)


# ---------------------------------------------------------------- which responses


def best_responses(rows: pa.Table, manifests: Mapping[str, Any]) -> dict[SearchKey, list[str | None]]:
    """What each search would have returned after each iteration: the first particle with its best-so-far reward."""
    names = ("out", "prompt_id", "method", "reward_best")
    targets = {
        (out, prompt_id, method): trace or []
        for out, prompt_id, method, trace in zip(*(rows[name].to_pylist() for name in names), strict=True)
    }
    found: dict[SearchKey, list[str | None]] = {}
    for out in manifests:
        for name in particle_files(out, "judge_curves need an evaluation with run.particles=true"):
            schema = pa.schema([PARTICLE_SCHEMA.field(column) for column in _DRAWN])
            for key, drawn in _searches(read_files(out, [name], schema), out).items():
                if key in targets:
                    found[key] = _followed(drawn, targets[key])
    return found


def _searches(table: pa.Table, out: str) -> dict[SearchKey, list[tuple[int, float | None, str]]]:
    """The searches of one file, each with its (iteration, reward, response) in the order of drawing."""
    table = table.sort_by([(name, "ascending") for name in _DRAWN[:4]])
    found: dict[SearchKey, list[tuple[int, float | None, str]]] = {}
    for prompt_id, method, iteration, _, reward, response in zip(*(table[n].to_pylist() for n in _DRAWN), strict=True):
        found.setdefault((out, prompt_id, method), []).append((iteration, reward, response))
    return found


def _followed(drawn: Sequence[tuple[int, float | None, str]], targets: Sequence[float | None]) -> list[str | None]:
    """The response with the best-so-far reward `targets[k]` among those drawn up to iteration k; None without one."""
    first: dict[float, tuple[int, str]] = {}
    for iteration, reward, response in drawn:
        if reward is not None:
            first.setdefault(reward, (iteration, response))
    steps: list[str | None] = []
    for k, target in enumerate(targets):
        iteration, response = first.get(target, (k + 1, "")) if target is not None else (k + 1, "")
        steps.append(response if iteration <= k else None)
    return steps


# ---------------------------------------------------------------- prompts as the run read them


def prompts_of(
    columns: Mapping[str, Sequence], manifests: Mapping[str, Mapping[str, Any]], baseline: str
) -> dict[tuple[str, str], Prompt]:
    """(output, prompt id) -> the prompt with its messages and meta, the baseline's response among them."""
    found: dict[tuple[str, str], Prompt] = {}
    mine, elsewhere = baseline_responses(columns, baseline)
    most: dict[str, int] = {}  # prompts to read of each output's data: up to the last one that has a row
    for out, ordinal in zip(columns["out"], columns["ordinal"], strict=True):
        most[out] = max(most.get(out, 0), (ordinal or 0) + 1)
    again = {out: read_again(manifest, most.get(out)) for out, manifest in manifests.items()}
    names = ("out", "prompt_id", "ordinal", "dataset", "prompt", "seed")
    for out, prompt_id, ordinal, dataset, text, seed in zip(*(columns[name] for name in names), strict=True):
        if (out, prompt_id) in found:
            continue
        prompt = again.get(out, {}).get(prompt_id)
        if prompt is None or prompt.text != text:
            prompt = Prompt(prompt_id, ordinal, dataset, text or "", messages_of(text or ""))
        response = mine.get((out, prompt_id), elsewhere.get((prompt_id, text, seed)))
        meta = {**prompt.meta, **({BASELINE: response} if response is not None else {})}
        found[out, prompt_id] = replace(prompt, meta=meta)
    return found


def baseline_responses(
    columns: Mapping[str, Sequence], baseline: str
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str, int], str]]:
    """The baseline's responses by (output, prompt id), and by (prompt id, prompt, seed) for outputs that lack it."""
    mine: dict[tuple[str, str], str] = {}
    elsewhere: dict[tuple[str, str, int], str] = {}
    names = ("out", "prompt_id", "prompt", "seed", "method", "label", "response")
    for out, prompt_id, text, seed, method, label, response in zip(*(columns[name] for name in names), strict=True):
        if baseline in (method, label) and response is not None:
            mine.setdefault((out, prompt_id), response)
            elsewhere.setdefault((prompt_id, text, seed), response)
    return mine, elsewhere


def read_again(manifest: Mapping[str, Any], limit: int | None) -> dict[str, Prompt]:
    """The run's first `limit` prompts by id, read from its data again; the rows' text stands for what is not there."""
    from aisp_ray import config
    from aisp_ray.data.stream import rows_locally

    values = (manifest.get("config") or {}).get("data")
    if not values:
        return {}
    try:
        spec = config.build(values, "data")
        return {prompt.prompt_id: prompt for prompt in rows_locally(spec, limit)}
    except (ValueError, OSError) as error:
        log.warning("the data of the run cannot be read again (%s): judges see the prompts of the rows", error)
        return {}


def messages_of(text: str) -> tuple[Message, ...]:
    """The dialogue in a text with Human and Assistant turns; any other text is one user turn."""
    from aisp_ray.data._transcript import is_dialogue, read_turns, split_reply

    return split_reply(read_turns(text))[0] if is_dialogue(text) else (Message("user", text),)
