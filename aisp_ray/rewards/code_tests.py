"""Unit tests of a code answer as its reward: the fraction that passes (MBPP, MBPP+, HumanEval and their like).

The answer runs in a process without rights (see `sandbox/child.py`): it cannot start processes, connect, signal others,
change files or read other people's, and its time and memory are limited. It shares that process with its tests:
objects of its own classes decide no comparison with a plain value (`_programs.guarded`), but code written to attack the
grader can still reach it through frames. docs/rewards.md states the threat model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aisp_ray.errors import LoadError
from aisp_ray.rewards._programs import called_names, completed, extract_code, guarded, runnable_test
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.rewards.sandbox.child import landlock_version
from aisp_ray.rewards.sandbox.parent import Limits, contained, run
from aisp_ray.types import Prompt, Scores


@dataclass(frozen=True, kw_only=True)
class CodeTests(RewardSpec):
    """Settings of unit tests as a reward. A prompt's tests are `meta["tests"]`: a list of Python sources, or one."""

    all_or_nothing: bool = False  # true: 1 if every test passes, else 0; false: the fraction that passes
    test_seconds: float = 3.0  # processor seconds of the answer's own statements, and of each test
    total_seconds: int = 20  # processor seconds of an answer with all of its tests
    wall_seconds: float = 60.0  # seconds by the clock, against answers that sleep
    memory_mb: int = 1024  # address space of an answer, MiB
    workers: int = 2  # answers that run side by side
    sandbox: bool = True  # false: limits only, where there is no seccomp; answers then can write files and connect

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("test_seconds", "total_seconds", "wall_seconds", "workers"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.memory_mb < 64:
            raise ValueError(f"memory_mb is {self.memory_mb}; Python itself needs 64")

    def load(self, device: str) -> CodeTestsScorer:
        return CodeTestsScorer(self)


class CodeTestsScorer(Scorer):
    """`rewards.base.Scorer` by unit tests. Needs no model and no device.

    Raises:
        LoadError: this system cannot contain answers, and `sandbox` is set.
    """

    max_requests = 1

    def __init__(self, spec: CodeTests):
        self.spec = spec
        self.limits = Limits(
            spec.test_seconds, spec.total_seconds, spec.wall_seconds, spec.memory_mb, sandbox=spec.sandbox
        )
        if spec.sandbox and (problem := contained()):
            raise LoadError(
                f"{problem}. Code answers need a Linux kernel with seccomp filters; where every answer is trusted, "
                "reward.sandbox=false runs them with limits only"
            )
        if spec.sandbox and not landlock_version():
            logging.getLogger(__name__).warning(
                "this kernel has no Landlock: code answers can read every file that this user can (docs/rewards.md)"
            )
        self._pool = ThreadPoolExecutor(spec.workers, thread_name_prefix="code-tests")

    def describe(self, prompt: Prompt) -> str | None:
        return None

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Scores:
        started = time.perf_counter()
        try:
            tests = tests_of(request.prompt)
        except ValueError as error:
            count = len(request.responses)
            return Scores((math.nan,) * count, (f"prompt {request.prompt.prompt_id}: {error}",) * count)
        meta = request.prompt.meta
        entry = meta.get("entry_point")
        names = {str(entry)} if entry else called_names(tests)
        programs = [
            completed(extract_code(response, names), meta.get("prompt_code"), entry) for response in request.responses
        ]
        distinct = list(dict.fromkeys(programs))
        checked = [guarded(test) for test in tests]
        outcomes = self._pool.map(lambda program: run(program, checked, self.limits), distinct)
        rewards = {
            program: self._reward(outcome.passed, len(tests))
            for program, outcome in zip(distinct, outcomes, strict=True)
        }
        seconds = time.perf_counter() - started
        values = tuple(rewards[program] for program in programs)
        return Scores(values, (None,) * len(values), seconds=seconds)

    def _reward(self, passed: int, count: int) -> float:
        return float(passed == count) if self.spec.all_or_nothing else passed / count


def tests_of(prompt: Prompt) -> list[str]:
    """The tests of a prompt, one Python source each, with the calls that they leave to their runner.

    Raises:
        ValueError: it has none, something else than texts, or a test that asserts nothing.
    """
    given: Any = prompt.meta.get("tests")
    tests = [given] if isinstance(given, str) else list(given or ())
    if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise ValueError('code_tests needs meta["tests"], Python source or a list of them; use a code data set')
    runnable = []
    for number, test in enumerate(tests, start=1):
        try:
            runnable.append(runnable_test(test, prompt.meta.get("entry_point")))
        except ValueError as error:
            raise ValueError(f"test {number} of {len(tests)} {error}") from error
    return runnable
