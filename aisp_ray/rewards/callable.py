"""Any Python function as a reward: `reward.target=my_scores.py:polite` or `reward.target=my_package.scores:polite`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import itertools
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from aisp_ray.config import importable, locate
from aisp_ray.errors import described, error_text, is_away, will_fail_again
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.types import Prompt, Scores

_MOST_LINE = 400  # characters of a line of a traceback


@dataclass(frozen=True, kw_only=True)
class CallableReward(RewardSpec):
    """Settings of a scorer written in Python.

    The target is called as `target(prompt, responses)` with a `types.Prompt` and a list of texts, and returns as many
    numbers. A class is made once, with `arguments`, and its instance called; a function gets `arguments` as keywords.
    None or NaN means that a response has no reward. The function must not depend on what it was asked before, or runs
    can no longer be repeated.
    """

    target: str  # file.py:name or package.module:name of a function or class, there wherever the reward model runs
    arguments: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the function, or of making the class

    def check(self, where: str = "reward") -> list[str]:
        try:
            target = find_target(self.target)
        except ValueError as error:
            return [f"{where}.target: {error}"]
        if not callable(target):
            return [f"{where}.target={self.target} is not something to call"]
        return [f"{where}.target={self.target} {problem}" for problem in _misfits(target, self.arguments)]

    def load(self, device: str) -> CallableScorer:
        target = find_target(self.target)
        if inspect.isclass(target):
            return CallableScorer(self.target, self._made(target), {})
        return CallableScorer(self.target, target, self.arguments)

    def _made(self, target: type) -> Any:
        """The instance. Raises ValueError with one sentence where no machine would make it."""
        try:
            return target(**self.arguments)
        except BaseException as error:  # a SystemExit of its own must not end the process
            if not will_fail_again(error):  # no memory or no network: another try may work
                raise
            at = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(at.filename).name}:{at.lineno}"
            raise ValueError(f"target={self.target} fails when it is made: {_told(error)} ({place})") from error


@dataclass(frozen=True, kw_only=True)
class FunctionReward(RewardSpec):
    """A function of this process as a reward model, called as `CallableReward`'s target is."""

    function: Callable[..., Sequence[float | None]]

    def check(self, where: str = "reward") -> list[str]:
        if not callable(self.function):
            return [f"{where} is a {type(self.function).__name__}, not a function"]
        return [f"{where}={_name(self.function)} {problem}" for problem in _misfits(self.function, {})]

    def load(self, device: str) -> CallableScorer:
        return CallableScorer(_name(self.function), self.function, {})


class CallableScorer(Scorer):
    """`rewards.base.Scorer` around a function. Where it raises on a batch, its responses are scored one by one, so that
    an exception costs the responses at fault only. One that says that a service is away comes through."""

    max_requests = 1

    def __init__(self, name: str, function: Callable[..., Any], arguments: dict[str, Any]):
        self.name = name
        self.function = function
        self.arguments = arguments

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Scores:
        started = time.perf_counter()
        distinct = list(dict.fromkeys(request.responses))
        raised: list[BaseException] = []
        found = dict(zip(distinct, self._values(request.prompt, distinct, raised), strict=True))
        rewards: list[float] = []
        errors: list[str | None] = []
        for particle, response in enumerate(request.responses):
            value = found[response]
            good = isinstance(value, float) and math.isfinite(value)
            where = f"prompt {request.prompt.prompt_id}, particle {particle}"
            said = value if isinstance(value, str) else f"returned {value}"
            rewards.append(value if isinstance(value, float) and good else math.nan)
            errors.append(None if good else f"{where}: {self.name} {said}")
        seconds = time.perf_counter() - started
        shown = _shown(raised[0]) if raised else None
        return Scores(tuple(rewards), tuple(errors), seconds=seconds, traceback=shown)

    def _values(self, prompt: Prompt, responses: list[str], raised: list[BaseException]) -> list[float | str]:
        """A reward for each response, or a text that says how the function failed; exceptions go to `raised` too."""
        failed: BaseException | None = None
        values, listed = None, None
        try:
            values = self.function(prompt, list(responses), **self.arguments)
            listed = _listed(values, len(responses))
        except BaseException as error:  # a SystemExit must not end the process of its neighbours
            if is_away(error):  # no response's fault: the run waits
                raise
            failed = error
        if failed is not None and len(responses) > 1:
            return [self._values(prompt, [response], raised)[0] for response in responses]
        if failed is not None:
            raised.append(failed)
            return [f"failed with {error_text(described(failed))}"]
        if listed is None:
            text = f"returned a single {type(values).__name__} for {len(responses)} responses; it has to return a list"
            return [text] * len(responses)
        if len(listed) != len(responses):
            count = len(values) if isinstance(values, Sized) else f"{len(listed)} or more"
            text = f"returned {count} rewards for {len(responses)} responses; it has to return one for each"
            return [text] * len(responses)
        return [_number(value) for value in listed]


def _listed(values: Any, most: int) -> list[Any] | None:
    """The values, at most one more than `most`, as a generator may never end; None of what is no list of rewards."""
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        return None
    if getattr(values, "ndim", 1) == 0:  # an array or tensor of one number calls itself iterable
        return None
    return list(itertools.islice(values, most + 1))


def _told(error: BaseException) -> str:
    return " ".join(error_text(described(error)).split())[:_MOST_LINE]


def _shown(error: BaseException) -> str:
    """The traceback for people: long lines, such as a text of megabytes, are cut."""
    lines = error_text("".join(traceback.format_exception(error))).splitlines()
    return "\n".join(line if len(line) <= _MOST_LINE else f"{line[:_MOST_LINE]} ..." for line in lines)


def find_target(path: str) -> Any:
    """The object at "file.py:name" or "package.module:name"; the current folder counts as importable.

    Raises:
        ValueError: the path does not lead to an object, or its module raises when imported; one sentence.
    """
    file, _, name = path.rpartition(":")
    try:
        if not file.endswith(".py"):
            return locate(path)
        module = _load_file(file)
    except ValueError:
        raise
    except BaseException as error:
        raise ValueError(f"{path!r} cannot be imported: {error_text(described(error))}") from error
    if not hasattr(module, name):
        raise ValueError(f"{path!r}: {file} has no {name!r}")
    return getattr(module, name)


def _load_file(file: str) -> ModuleType:
    """The module in a file: an absolute path, or one below the current folder or a folder of the Python path."""
    places = [Path(folder or ".") / Path(file).expanduser() for folder in ("", *sys.path)]
    found = next((place.resolve() for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"there is no file {file} (looked in {os.getcwd()} and on the Python path)")
    name = f"{found.stem}_{hashlib.blake2b(str(found).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, found)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    importable(str(found.parent))  # for its own imports
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _misfits(target: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    """Why the target cannot be called as it will be; nothing where that cannot be known."""
    call: Callable[..., Any] | None = target
    try:
        if inspect.isclass(target):
            inspect.signature(target).bind(**arguments)
            call = next((vars(base)["__call__"] for base in target.__mro__ if "__call__" in vars(base)), None)
            if call is None:
                return ["makes objects that cannot be called; give the class __call__(self, prompt, responses)"]
            inspect.signature(call).bind(None, None, [])
        else:
            inspect.signature(target).bind(None, [], **arguments)
    except TypeError as error:
        return [f"does not fit: {error}; it is called with (prompt, responses) and reward.arguments as keywords"]
    except ValueError:
        pass  # a function in C says nothing about its parameters
    if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
        return ["is an async function; give a plain one, which may call asyncio.run(...)"]
    return []


def _number(value: Any) -> float | str:
    """The reward as a float, None as NaN, or a text that says what it is instead."""
    try:
        return math.nan if value is None else float(value)
    except Exception as error:  # whatever its own __float__ raises
        return f"returned a {type(value).__name__} that is no number: {error_text(described(error))}"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", "the function")
