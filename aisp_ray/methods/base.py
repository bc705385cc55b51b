"""What a method is: `init`, `ask` and `tell`, and the state that is carried between them.

A method sees neither Ray nor a GPU nor torch. `tell` is pure: state in, state and info out. State is what must be
carried (it is snapshotted as JSON and resumed); info is what is only looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aisp_ray.types import Prompt, Proposal, Rollouts, Scores


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response and where it came from."""

    response: str
    reward: float
    iteration: int
    particle: int
    finish_reason: str
    token_ids: tuple[int, ...] = ()
    logprob: float = math.nan


@dataclass(frozen=True, slots=True)
class State:
    """Carried between iterations. Methods subclass it with fields of JSON values, tuples and dataclasses."""

    prompt_id: str
    seed: int
    iteration: int = 0
    done: bool = False
    best: Candidate | None = None  # what the method would return if it stopped now


Info = Mapping[str, float]  # diagnostics of one iteration by name, e.g. {"ess": 3.2}; a missing one is NaN in the row


class Method(Protocol):
    """The protocol of a method. `num_samples` and `num_iterations` are its whole budget, for one prompt."""

    @property
    def num_samples(self) -> int:
        """Responses (reward calls) it will ask for in all."""

    @property
    def num_iterations(self) -> int: ...

    def init(self, prompt: Prompt, seed: int) -> State: ...

    def ask(self, state: Any) -> Proposal: ...

    def tell(self, state: Any, rollouts: Rollouts, scores: Scores) -> tuple[Any, Info]: ...


def best_candidate(best: Candidate | None, rollouts: Rollouts, scores: Scores) -> Candidate | None:
    """The better of `best` and these rollouts. The first seen wins a tie; a particle without a reward never wins."""
    for rollout, reward in zip(rollouts.items, scores.rewards, strict=True):
        if math.isfinite(reward) and (best is None or reward > best.reward):
            best = Candidate(
                response=rollout.text,
                reward=reward,
                iteration=rollouts.iteration,
                particle=rollout.particle,
                finish_reason=rollout.finish_reason,
                token_ids=rollout.token_ids,
                logprob=rollout.logprob,
            )
    return best


def require(condition: bool, message: str) -> None:
    """A `ValueError` for whoever wrote the configuration."""
    if not condition:
        raise ValueError(message)


def check_rounds(n: int, kappa: int, one: str = "response a round", turn: str = "round") -> None:
    """Ranges of `n` and `kappa`. one, turn: what the method calls a draw and a round.

    Raises:
        ValueError: either is below 1.
    """
    require(n >= 1, f"n is {n}; give at least 1 {one}")
    require(kappa >= 1, f"kappa is {kappa}; give at least 1 {turn}")


def check_sampling(temperature: float, top_p: float = 1.0) -> None:
    """Ranges of `temperature` and `top_p` where temperature 0 decodes greedily.

    Raises:
        ValueError: one is out of range, or top_p is set and has no effect.
    """
    require(temperature >= 0, f"temperature is {temperature}; 0 is greedy, above 0 samples")
    check_top_p(top_p)
    require(temperature > 0 or top_p == 1, "top_p has no effect at temperature=0; set temperature too")


def check_top_p(top_p: float) -> None:
    """Raises ValueError unless `top_p` is a probability mass above 0."""
    require(0 < top_p <= 1, f"top_p is {top_p}; it is a probability mass in (0, 1]")


def check_horizon(horizon: int) -> None:
    """Raises ValueError unless `horizon` controls a position."""
    require(horizon >= 1, f"horizon is {horizon}; control at least 1 position")


BUDGET_UNITS = ("samples", "reward_calls", "generated_tokens")


def planned_cost(method: Method, max_new_tokens: int) -> dict[str, int]:
    """The most that one prompt can cost under a method, by unit of `BUDGET_UNITS`.

    Samples are proposals' rows; each is scored once. A sample generates at most `max_new_tokens`, unless the method
    has a `max_generated_tokens(max_new_tokens)` of its own (ARGS draws one token a sample). What was really spent is
    in the ledger of every row.
    """
    own = getattr(method, "max_generated_tokens", None)
    tokens = own(max_new_tokens) if own is not None else method.num_samples * max_new_tokens
    return {"samples": method.num_samples, "reward_calls": method.num_samples, "generated_tokens": tokens}


def check_budgets(methods: Mapping[str, Method], unit: str = "samples", max_new_tokens: int = 128) -> str | None:
    """None when all methods plan the same cost in `unit`; else one sentence for whoever set them side by side."""
    require(unit in BUDGET_UNITS, f"budget unit is {unit!r}; it is one of {', '.join(BUDGET_UNITS)}")
    costs = {name: planned_cost(method, max_new_tokens)[unit] for name, method in methods.items()}
    if len(set(costs.values())) <= 1:
        return None
    listed = ", ".join(f"{name} {cost}" for name, cost in costs.items())
    return f"the methods have unequal budgets in {unit} a prompt: {listed}"


def fit_budget(method: Method, unit: str, amount: int, max_new_tokens: int = 128) -> Any:
    """The method with its number of rounds (`kappa`) set so that its planned cost in `unit` is `amount`.

    Raises:
        ValueError: the method has no `kappa`, or its rounds do not divide the amount.
    """
    require(unit in BUDGET_UNITS, f"budget unit is {unit!r}; it is one of {', '.join(BUDGET_UNITS)}")
    kind = type(method).__name__
    cost = planned_cost(method, max_new_tokens)[unit]
    if cost == amount:
        return method
    require(hasattr(method, "kappa"), f"{kind} costs {cost} {unit} and has no kappa to fit it to {amount}")
    one_round = planned_cost(dataclasses.replace(method, kappa=1), max_new_tokens)[unit]  # type: ignore[type-var]
    require(
        amount % one_round == 0 and amount > 0,
        f"a budget of {amount} {unit} is no multiple of one round of {kind}, {one_round}; change n or the budget",
    )
    return dataclasses.replace(method, kappa=amount // one_round)  # type: ignore[type-var]


def read_budget(budget: Any) -> tuple[str, int]:
    """(unit, amount) of `256` (samples), `samples:256`, `reward_calls:256` or `generated_tokens:16384`.

    Raises:
        ValueError: it is written otherwise.
    """
    unit, _, amount = budget.partition(":") if isinstance(budget, str) else ("samples", "", budget)
    given = f"budget is {budget!r}"
    require(
        unit in BUDGET_UNITS, f"{given}; write budget=256 (samples) or {' or '.join(BUDGET_UNITS)} as in samples:256"
    )
    whole = amount.strip().isdecimal() if isinstance(amount, str) else type(amount) is int
    require(whole and int(amount) > 0, f"{given}; the amount is a whole number above 0")
    return unit, int(amount)


def fit_budgets(methods: Mapping[str, Any], budget: Any, max_new_tokens: int) -> dict[str, Any]:
    """Every method at one cost a prompt, written as `read_budget` reads it; None leaves them as they are.

    Raises:
        ValueError: the budget cannot be read, or a method cannot meet it (named).
    """
    if budget is None:
        return dict(methods)
    unit, amount = read_budget(budget)
    fitted = {}
    for name, method in methods.items():
        try:
            fitted[name] = fit_budget(method, unit, amount, max_new_tokens)
        except ValueError as error:
            raise ValueError(f"method.{name}: {error}") from error
    return fitted
