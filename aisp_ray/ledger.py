"""What a search has done so far and what it cost: its trace, its progress, its outcome, and their rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aisp_ray.errors import encodable, error_text
from aisp_ray.methods.base import Info, Method, State
from aisp_ray.results import JUDGE_ERRORS, LEDGER, NUM_TRUNCATED, TRACES, null
from aisp_ray.types import Prompt, Rollouts, Scores


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt under one method."""

    prompt: Prompt
    name: str  # of the method, as in conf/method
    method: Method

    @property
    def key(self) -> tuple[int, str]:
        return self.prompt.ordinal, self.name


@dataclass(frozen=True, slots=True)
class Trace:
    """What is looked at and not carried: one value an iteration, and the ledger."""

    reward_mean: tuple[float, ...] = ()
    reward_std: tuple[float, ...] = ()  # of one iteration's rewards, with n - 1; NaN for fewer than two
    reward_max: tuple[float, ...] = ()
    reward_best: tuple[float, ...] = ()
    ess: tuple[float, ...] = ()
    control_norm: tuple[float, ...] = ()
    num_samples_seen: tuple[int, ...] = ()
    extra: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    num_reward_calls: int = 0
    num_failed_particles: int = 0
    num_truncated: int = 0
    policy_seconds: float = 0.0
    reward_seconds: float = 0.0
    wall_seconds: float = 0.0
    particle_error: str | None = None  # the first one seen

    @property
    def num_samples(self) -> int:
        return self.num_samples_seen[-1] if self.num_samples_seen else 0


@dataclass(frozen=True, slots=True)
class Progress:
    """A search between two iterations; what a snapshot holds of it."""

    state: State
    trace: Trace


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished task: its progress, or why there is none."""

    task: Task
    progress: Progress | None
    error: str | None = None
    judge_rewards: Mapping[str, float] = field(default_factory=dict)
    judge_errors: Mapping[str, str] = field(default_factory=dict)  # why, of judges without a score


Watch = Callable[[Task, Progress, Rollouts, Scores], None]


def extend(trace: Trace, drawn: tuple[Rollouts, Scores], told: tuple[State, Info], seconds: float) -> Trace:
    """The trace with one more iteration. A particle without a reward counts as failed and in no mean."""
    rollouts, scores = drawn
    state, info = told
    mean, std, highest, num_finite = _spread(scores.rewards)
    errors = [text for text in scores.errors if text]
    names = dict.fromkeys((*trace.extra, *(name for name in info if name != "ess")))
    missing = (math.nan,) * len(trace.reward_mean)
    return replace(
        trace,
        reward_mean=(*trace.reward_mean, mean),
        reward_std=(*trace.reward_std, std),
        reward_max=(*trace.reward_max, highest),
        reward_best=(*trace.reward_best, state.best.reward if state.best else math.nan),
        ess=(*trace.ess, float(info.get("ess", math.nan))),
        control_norm=(*trace.control_norm, rollouts.control_norm),
        num_samples_seen=(*trace.num_samples_seen, trace.num_samples + len(rollouts.items)),
        extra={name: (*trace.extra.get(name, missing), float(info.get(name, math.nan))) for name in names},
        num_generated_tokens=trace.num_generated_tokens + rollouts.num_generated_tokens,
        num_prompt_tokens=rollouts.num_prompt_tokens,
        num_reward_calls=trace.num_reward_calls + len(scores.rewards),
        num_failed_particles=trace.num_failed_particles + len(scores.rewards) - num_finite,
        num_truncated=trace.num_truncated + scores.num_truncated,
        policy_seconds=trace.policy_seconds + rollouts.seconds,
        reward_seconds=trace.reward_seconds + scores.seconds,
        wall_seconds=trace.wall_seconds + seconds,
        particle_error=trace.particle_error or (error_text(errors[0]) if errors else None),  # a snapshot holds it
    )


def _spread(rewards: Sequence[float]) -> tuple[float, float, float, int]:
    """Mean, standard deviation (with n - 1) and maximum of the finite ones, NaN where undefined, and their number.

    The same to the last bit as `mean()` and `std(ddof=1)` of an array, in a third of their time.
    """
    found = [reward for reward in rewards if math.isfinite(reward)]
    if not found:
        return math.nan, math.nan, math.nan, 0
    finite = np.array(found, dtype=np.float64)
    mean = np.add.reduce(finite) / len(found)
    if len(found) == 1:
        return float(mean), math.nan, found[0], 1
    away = finite - mean
    return float(mean), math.sqrt(np.add.reduce(away * away) / (len(found) - 1)), float(max(found)), len(found)


def row_of(outcome: Outcome, run: Mapping[str, Any]) -> dict[str, Any]:
    """The row of `results.ROW_SCHEMA`. run: run_id, config_hash, seed."""
    task, progress = outcome.task, outcome.progress
    trace = progress.trace if progress else Trace()
    best = progress.state.best if progress and outcome.error is None else None
    return {
        **run,
        "prompt_id": task.prompt.prompt_id,
        "ordinal": task.prompt.ordinal,
        "dataset": task.prompt.dataset,
        "method": task.name,
        "prompt": encodable(task.prompt.text),
        "response": encodable(best.response) if best else None,
        "reward": best.reward if best else None,
        "status": "ok" if best else "error",
        "error": error_text(outcome.error) if outcome.error is not None else None,
        "finish_reason": best.finish_reason if best else None,
        **{name: getattr(trace, name) for name in LEDGER},
        "num_prompt_tokens": trace.num_prompt_tokens if trace.num_samples else None,
        **{name: null(getattr(trace, name)) for name in TRACES},
        "num_samples_seen": list(trace.num_samples_seen),
        "judge_names": list(outcome.judge_rewards),
        "judge_rewards": null([*outcome.judge_rewards.values()]),
        "extra": _extra_json(trace, outcome.judge_errors),
    }


def particle_rows(task: Task, rollouts: Rollouts, scores: Scores, run_id: str) -> Iterator[dict[str, Any]]:
    """Rows of `results.PARTICLE_SCHEMA`, one a particle."""
    errors = scores.errors or (None,) * len(scores.rewards)
    for item, reward, error in zip(rollouts.items, scores.rewards, errors, strict=True):
        yield {
            "run_id": run_id,
            "prompt_id": task.prompt.prompt_id,
            "ordinal": task.prompt.ordinal,
            "method": task.name,
            "iteration": rollouts.iteration,
            "particle": item.particle,
            "response": encodable(item.text),
            "reward": null(reward),
            "error": error_text(error) if error is not None else None,
            "finish_reason": item.finish_reason,
            "num_generated_tokens": item.num_generated_tokens,
            "logprob": null(item.logprob),
        }


def _extra_json(trace: Trace, judge_errors: Mapping[str, str]) -> str | None:
    found: dict[str, Any] = null(trace.extra)
    if trace.num_truncated:
        found[NUM_TRUNCATED] = trace.num_truncated
    if judge_errors:
        found[JUDGE_ERRORS] = {name: error_text(text) for name, text in judge_errors.items()}
    return json.dumps(found) if found else None
