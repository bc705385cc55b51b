"""The package as a library: `best_responses` for a script or a notebook, without files and without Ray.

from aisp_ray import best_responses

results = best_responses("demo:policy", ["How do I brew coffee?"], lambda prompt, texts: [len(t) for t in texts], n=8)
print(results[0].response, results[0].reward)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from aisp_ray import config
from aisp_ray.cluster.opening import open_models
from aisp_ray.commands.base import as_typed
from aisp_ray.driver import Driver
from aisp_ray.errors import INTERRUPTED, OK, REFUSED, SOME_ERRORS
from aisp_ray.ledger import Outcome, Task, row_of
from aisp_ray.methods.base import Method, fit_budgets, total_of
from aisp_ray.methods.total_budget import TotalBudget
from aisp_ray.plan import RunSettings
from aisp_ray.policy.base import PolicySpec
from aisp_ray.policy.causal_lm import CausalLM
from aisp_ray.policy.given import policy_of
from aisp_ray.results import ROW_SCHEMA
from aisp_ray.rewards.base import RewardSpec
from aisp_ray.rewards.callable import FunctionReward
from aisp_ray.types import Prompt
from aisp_ray.worker import beside_a_loop

if TYPE_CHECKING:
    import pyarrow as pa

RewardFunction = Callable[[Prompt, list[str]], Sequence[float | None]]
_T = TypeVar("_T")
_Args = ParamSpec("_Args")

_COST = ("num_samples", "num_generated_tokens", "num_prompt_tokens", "num_reward_calls", "policy_seconds")
_TRACE = ("reward_mean", "reward_max", "reward_best", "ess", "control_norm", "num_samples_seen")


@dataclass(frozen=True)
class BestResponse:
    """The best response to one prompt, how the search got there, and what it cost."""

    prompt: str
    response: str | None  # None where the search failed
    reward: float  # of the response; NaN where the search failed
    error: str | None  # why there is no response
    finish_reason: str | None  # stop | stop_string | length
    trace: Mapping[str, Sequence[float | None]]  # one value per iteration: reward_mean, reward_best, ess, ...
    cost: Mapping[str, float | None]  # samples, tokens, reward calls, seconds
    row: Mapping[str, Any] = field(repr=False)  # the whole row, as `results.ROW_SCHEMA` describes it


class BestResponses(Sequence[BestResponse]):
    """The results of `best_responses`, in the order of the prompts."""

    def __init__(self, items: Sequence[BestResponse]):
        self._items = tuple(items)

    @overload
    def __getitem__(self, index: int) -> BestResponse: ...
    @overload
    def __getitem__(self, index: slice) -> BestResponses: ...
    def __getitem__(self, index: int | slice) -> BestResponse | BestResponses:
        return BestResponses(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        failed = sum(item.error is not None for item in self._items)
        good = [item.reward for item in self._items if item.error is None]
        mean = f"mean reward {sum(good) / len(good):.3f}" if good else "no reward"
        return f"<{len(self._items)} best responses, {mean}{f', {failed} failed' if failed else ''}>"

    def to_arrow(self) -> pa.Table:
        """One row per prompt in the schema of `jobs/eval.py`'s output."""
        import pyarrow as pa

        return pa.Table.from_pylist([dict(item.row) for item in self._items], schema=ROW_SCHEMA)

    def to_pandas(self) -> Any:
        """The same rows as a pandas DataFrame. Raises ImportError where pandas is not installed."""
        return self.to_arrow().to_pandas()


async def abest_responses(  # noqa: PLR0913 one call for a notebook: every argument but three has a default
    model: Any,
    prompts: Iterable[Any],
    reward: str | RewardSpec | RewardFunction,
    *,
    method: str | Method = "aisp",
    budget: int | str | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    policy: Mapping[str, Any] | None = None,
    cluster: bool = False,
    progress: bool = True,
    **settings: Any,
) -> BestResponses:
    """The best response to each prompt that `method` finds under `reward`; `best_responses` is the call without await.

    model: a path, a hub id, "demo:policy", or a loaded `transformers` model together with its `tokenizer`.
    prompts: strings, dialogues (lists of {"role": ..., "content": ...}), or rows with a column prompt or messages, as a
        `datasets.Dataset` has them.
    reward: a function of (prompt, responses) that returns a number per response, the name of a reward model in
        conf/reward, or its settings.
    method: a preset of conf/method or the path of a YAML, whose keys `settings` changes (n=8, kappa=4, sigma=0.5), or a
        method object.
    budget: responses per prompt, by setting kappa, or "total:8192" over all prompts; as in `methods.base.read_budget`.
        None: what the method's keys say.
    policy: settings of `policy.causal_lm.CausalLM`, such as {"max_new_tokens": 64}.
    seed: names all randomness; the same arguments give the same responses.
    cluster: models as Ray actors, on the cluster that is joined or started; policy={"actors": [1, 8], "num_gpus": 1}.

    Otherwise runs in this process, on the GPU if there is one, also inside a notebook's event loop. A prompt that fails
    has an `error` and costs the others nothing.

    Raises:
        ValueError: a setting is wrong; says which values are allowed.
    """
    samples = total_of(budget)
    total = None if samples is None else TotalBudget(samples)
    longest = (policy or {}).get("max_new_tokens", CausalLM.max_new_tokens)
    name, chosen = _method(method, settings, budget, longest)
    asked = _prompts(prompts)
    plan = await asyncio.to_thread(_plan, (model, tokenizer), reward, policy or {}, chosen, not cluster)
    identity = {"run_id": "", "config_hash": "", "seed": seed}
    found: dict[int, BestResponse] = {}
    async with open_models(plan) as models:
        await models.ready()
        driver = Driver(models.policy, models.reward, {}, seed, models.in_flight)
        with _bar(len(asked), progress) as advance:
            async for outcome in driver.run(_stream(asked, name, chosen), total=total):
                found[outcome.task.prompt.ordinal] = _result(outcome, identity)
                advance()
    return BestResponses([found[ordinal] for ordinal in sorted(found)])


def _without_await(call: Callable[_Args, Coroutine[Any, Any, _T]]) -> Callable[_Args, _T]:
    """The call with the same arguments and documentation, run to its end in an event loop of its own."""

    @functools.wraps(call)
    def finished(*args: _Args.args, **kwargs: _Args.kwargs) -> _T:
        return beside_a_loop(lambda: asyncio.run(call(*args, **kwargs)))

    finished.__name__ = finished.__qualname__ = call.__name__.removeprefix("a")
    return finished


best_responses = _without_await(abest_responses)
"""`abest_responses` with the same arguments, run to its end: for scripts and notebooks."""


# ---------------------------------------------------------------- an evaluation


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation that has ended: its rows, table and report are those of `python jobs/eval.py`."""

    out: str  # folder or URI of all that was written
    baseline: str = "best_of_n"  # what differences in the table are against

    def to_arrow(self) -> pa.Table:
        """One row per prompt and method; `results.ROW_SCHEMA`, and a column `label`."""
        return self._rows().drop_columns(["out"])

    def to_pandas(self) -> Any:
        """The same rows as a pandas DataFrame. Raises ImportError where pandas is not installed."""
        return self.to_arrow().to_pandas()

    def table(self, style: str = "text") -> str:
        """The results as `text`, `markdown`, `latex` or `csv`."""
        from aisp_ray.report.summary import summary_table
        from aisp_ray.report.tables.evaluation import format_table

        return format_table(summary_table(self._rows(), baseline=self.baseline), style)

    def report(self, to: str | None = None) -> str:
        """Write the page, its tables and figures to `to`, by default <out>/report; returns the path of index.html."""
        from aisp_ray.report.write import make_report

        return make_report(self.out, to, baseline=self.baseline).page

    def _rows(self) -> pa.Table:
        from aisp_ray.report.rows import read_rows

        return read_rows(self.out)

    def __str__(self) -> str:
        return self.table()


def evaluate(settings: Mapping[str, Any] | None = None, **keys: Any) -> EvaluationRun:
    """`python jobs/eval.py` from Python: methods compared on prompts, on Ray, rows written as they come.

    keys: the command's, such as method=["best_of_n", "aisp"], data="demo_hh", limit=16, out="outputs/hh"; without any
        it is the demo.
    settings: keys with dots, such as {"method.aisp.sigma": 0.5, "policy.actors": [1, 2]}.

    The same call resumes where an earlier one stopped. It may run in a notebook.

    Raises:
        ValueError: a key is wrong, or `out` holds rows of another configuration.
        RuntimeError: the run has failed; the message names the exit code, and what was written stays.
        KeyboardInterrupt: it was stopped.
    """
    from aisp_ray.commands import eval as command
    from aisp_ray.pipeline import run

    words = [f"{key}={as_typed(value)}" for key, value in {**keys, **(settings or {})}.items()]
    composed = command.read_command(words)[1]
    plan = command.planned(composed)
    steps = command.first_steps(plan, composed)
    code = beside_a_loop(lambda: command.train(steps) or run(plan))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == REFUSED:
        raise ValueError(f"the evaluation was refused (the reason is printed above); out={plan.out}")
    if code not in (OK, SOME_ERRORS):
        raise RuntimeError(f"the evaluation has failed with exit code {code}; the same call resumes it from {plan.out}")
    done = EvaluationRun(plan.out, composed.settings.baseline)
    if composed.settings.report:
        done.report()
    return done


# ---------------------------------------------------------------- parts


def _method(
    method: str | Method, settings: Mapping[str, Any], budget: int | str | None, max_new_tokens: int
) -> tuple[str, Any]:
    """The method's name and the method, with the settings and the budget that the call gives."""
    chosen: Any = method
    if isinstance(method, str):
        name = config.choice_name(method)
        try:
            chosen = config.build({**config.read_choice("method", method), **settings}, f"method.{name}")
        except config.ConfigError as error:
            raise config.ConfigError(f"{error}{_of_the_policy(settings)}") from error
    else:
        name = type(method).__name__.lower()
        chosen = dataclasses.replace(chosen, **settings)
    return name, fit_budgets({name: chosen}, budget, max_new_tokens)[name]


def _of_the_policy(settings: Mapping[str, Any]) -> str:
    """A hint where settings of the policy were given as settings of the method."""
    known = {field.name for field in dataclasses.fields(CausalLM)}
    found = {key: value for key, value in settings.items() if key in known}
    return f". For the policy, give policy={found!r}" if found else ""


def _prompts(prompts: Iterable[Any]) -> list[Prompt]:
    """Strings, dialogues and rows as prompts. What cannot be one is a prompt with an `error`.

    Raises:
        ValueError: a string or a mapping was given in place of a list of prompts.
    """
    from aisp_ray.data.prompts import Prompts
    from aisp_ray.data.select import DropReport, select
    from aisp_ray.data.stream import parse_record

    if isinstance(prompts, str | Mapping):
        raise ValueError(f"prompts is one {type(prompts).__name__}; give a list of prompts, such as [{prompts!r}]")
    spec = Prompts(path="prompts", name="prompts", dedup=False)
    parsed = (parse_record({"row": _row(item)}, spec) for item in prompts)
    return list(select(parsed, spec, None, DropReport()))


def _row(item: Any) -> dict[str, Any]:
    if isinstance(item, Prompt):
        turns = [{"role": turn.role, "content": turn.content} for turn in item.messages]
        return {"messages": turns} if turns else {"prompt": item.text}
    return dict(item) if isinstance(item, Mapping) else {"prompt": item}


@dataclass(frozen=True)
class _Plan:
    """`cluster.models.ModelPlan` of one call."""

    policy: PolicySpec
    reward: RewardSpec
    num_draws: int
    local: bool
    judges: Mapping[str, RewardSpec] = field(default_factory=dict)
    run: RunSettings = field(default_factory=RunSettings)


def _plan(
    model: tuple[Any, Any],
    reward: str | RewardSpec | RewardFunction,
    policy: Mapping[str, Any],
    method: Method,
    local: bool,
) -> _Plan:
    """The settings of the policy and of the reward model, checked."""
    if not local and not isinstance(model[0], str):
        raise ValueError("cluster=True loads the model on other machines; give its path or hub id, not a loaded model")
    chosen = policy_of(*model, policy, local)
    spec: Any = reward
    if isinstance(reward, str):
        values = config.read_choice("reward", reward)
        values.pop("_judges_", None)
        spec = config.build(values, "reward")
    elif not isinstance(reward, RewardSpec):
        spec = FunctionReward(function=reward)
    problems = [*chosen.check(), *spec.check()]
    if problems:
        raise ValueError("\n".join(problems))
    return _Plan(chosen, spec, max(1, method.num_samples // method.num_iterations), local)


async def _stream(prompts: Sequence[Prompt], name: str, method: Any) -> AsyncIterator[Task]:
    for prompt in prompts:
        yield Task(prompt, name, method)


def _result(outcome: Outcome, identity: Mapping[str, Any]) -> BestResponse:
    row = row_of(outcome, identity)
    return BestResponse(
        prompt=row["prompt"],
        response=row["response"],
        reward=math.nan if row["reward"] is None else row["reward"],
        error=row["error"],
        finish_reason=row["finish_reason"],
        trace={name: row[name] for name in _TRACE},
        cost={name: row[name] for name in (*_COST, "reward_seconds")},
        row=row,
    )


@contextlib.contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[], Any]]:
    """A progress bar over prompts; nothing where it is not wanted."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without ipywidgets: the bar is then one of text
        from tqdm.auto import tqdm

    with tqdm(total=total, unit="prompt", disable=not wanted) as bar:
        yield bar.update
