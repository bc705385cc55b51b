"""Python tasks with unit tests: MBPP (Austin et al., 2021, arXiv 2108.07732) and MBPP+ (Liu et al., 2023, 2305.01210).

The tests go to `meta["tests"]` for `reward=code_tests`. A task says what to write but seldom how to call it, so the
prompt shows some of the tests. Differs from the papers: the wording around the task is ours.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aisp_ray.data._row import text_of
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.types import Message

PLUS = "plus"
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Mbpp(DataSpec):
    """Settings of MBPP, MBPP+ and HumanEval: rows with `prompt` or `text`, and `test_list`, or `test` (plus)."""

    path: str = "evalplus/mbppplus"  # file, folder, glob, URI (s3:// gs:// hf:// ...), hub name, or demo:<name>
    tests: str = PLUS  # plus: the one long program of MBPP+; base: the three asserts of MBPP, each for itself
    show_tests: int = 1  # asserts shown in the prompt
    instruction: str = "Answer with one Python code block that defines the function."  # put behind the task

    own_name = "mbpp"
    columns = ("prompt", "text")
    rules: ClassVar = {"no_entry_point": "the name of the function could not be found in the tests"}

    def __post_init__(self) -> None:
        DataSpec.__post_init__(self)
        if self.tests not in (PLUS, BASE):
            raise ValueError(f"tests is {self.tests!r}; it is plus (MBPP+) or base (MBPP)")
        if self.show_tests < 0:
            raise ValueError(f"show_tests is {self.show_tests}; it counts the asserts that a prompt shows")

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        task, error = text_of(row, "prompt" if "prompt" in row else "text")
        if error:
            return Parsed(error=error)
        asserts = [test for test in row.get("test_list") or () if isinstance(test, str) and test.strip()]
        tests = self._tests(row, asserts)
        if not tests:
            column = "test" if self.tests == PLUS else "test_list"
            return Parsed(text=task, error=f"the task has no tests in column {column!r} (data.tests={self.tests})")
        given = row.get("entry_point")
        name = given if isinstance(given, str) and given else entry_point(asserts or tests, row.get("code"))
        meta = {"tests": tests, "task_id": row.get("task_id"), **({"entry_point": name} if name else {})}
        if name and name in _defined(f"{task.rstrip()}\n    pass"):
            meta["prompt_code"] = task  # the head of the function, as in HumanEval
        text = self._prompt(task, asserts)
        return Parsed(text, (Message("user", text),), meta, rules=() if name else ("no_entry_point",))

    def _tests(self, row: Mapping[str, Any], asserts: list[str]) -> list[str]:
        if self.tests == PLUS:
            test = row.get("test")
            return [test] if isinstance(test, str) and test.strip() else []
        setup = [*(row.get("test_imports") or ()), row.get("test_setup_code") or ""]
        head = "\n".join(line for line in setup if isinstance(line, str) and line.strip())
        return [f"{head}\n{test}" if head else test for test in asserts]

    def _prompt(self, task: str, asserts: list[str]) -> str:
        parts = [task.strip()]
        if shown := asserts[: self.show_tests]:
            tests = "\n".join(test.strip() for test in shown)
            parts.append(f"It has to pass:\n```python\n{tests}\n```")
        return "\n\n".join([*parts, self.instruction] if self.instruction else parts)


def entry_point(tests: Iterable[str], code: Any) -> str | None:
    """The function that the tests call: of those the reference defines, or the first called name otherwise."""
    called = [name for test in tests for name in _called(test)]
    defined = _defined(code) if isinstance(code, str) else set()
    known = [name for name in called if name in defined] if defined else called
    return known[0] if known else None


def _called(source: str) -> list[str]:
    """Names of plain functions called in a source, outermost last; Python's own left out."""
    import builtins

    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [name for name in calls if not hasattr(builtins, name)]


def _defined(source: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
