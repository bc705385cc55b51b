"""What a method is: `init`, `ask` and `tell`, and the state that is carried between them.

A method sees neither Ray nor a GPU nor torch. `tell` is pure: state in, state and info out. State is what must be
carried (it is snapshotted as JSON and resumed); info is what is only looked at.

`Method` is the protocol, with defaults for what most methods need not say. `Iterative` is the base of methods that draw
`n` responses in each of `kappa` iterations: it checks these numbers, keeps the best response and knows when to stop.
`Blocks` is the base of methods that look inside a response: they score it unfinished, block by block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from aisp_ray.methods._selection import NEEDS_BETA, SELECTIONS, poisson_draws, selection_scores
from aisp_ray.methods._stopping import MIN_DRAWS, PandoraBox, expected_gain
from aisp_ray.types import PREFIXES, Prompt, Proposal, Rollout, Rollouts, Sampling, Scores


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
    selection_score: float = -math.inf  # of `best`, by the rule that selects it
    rewards: tuple[float, ...] = ()  # of all draws, where a rule of stopping reads them


AnyState = TypeVar("AnyState", bound=State)
Info = Mapping[str, float]  # diagnostics of one iteration by name, e.g. {"ess": 3.2}; a missing one is NaN in the row


class Method:
    """The protocol of a method: settings that are pure functions of a search's state. Inherit it for its defaults."""

    budget_key: ClassVar[str | None] = None  # the setting that `fit_budget` changes; None: the cost is fixed
    horizon: int | None = None  # controlled positions; None: all
    max_new_tokens: int | None = None  # longest response that it asks for; None: the policy's limit

    @property
    def asks_for(self) -> frozenset[str]:
        """What its proposals ask of a policy beyond plain sampling: names of `types.ASKS`."""
        return frozenset()

    @property
    def num_samples(self) -> int:
        """Responses (reward calls) it will ask for in all, for one prompt."""
        raise NotImplementedError

    @property
    def num_iterations(self) -> int:
        """Turns of the loop, for one prompt, at most."""
        raise NotImplementedError

    def init(self, prompt: Prompt, seed: int) -> Any:
        """The state before the first iteration. The only place where a method may read a file."""
        raise NotImplementedError

    def ask(self, state: Any) -> Proposal:
        """What to draw next."""
        raise NotImplementedError

    def tell(self, state: Any, rollouts: Rollouts, scores: Scores) -> tuple[Any, Info]:
        """The state after these rollouts and their rewards, and what is only looked at."""
        raise NotImplementedError

    def check(self) -> list[str]:
        """What is wrong with the settings and can be known before anything loads, a sentence each."""
        return []

    def first_steps(self, choices: Mapping[str, str]) -> list[str]:
        """Whole commands that must be run before the method can. choices: the names of policy, reward and data."""
        return []

    def remarks(self, max_new_tokens: int) -> list[str]:
        """What a reader should know about these settings under a policy's limit, a sentence each."""
        length = min(self.max_new_tokens or max_new_tokens, max_new_tokens)
        found = []
        if length < max_new_tokens:
            found.append(f"responses end after {length} of the policy's {max_new_tokens} tokens (max_new_tokens)")
        if self.horizon is not None and 0 < self.horizon < length:
            found.append(f"the first {self.horizon} of up to {length} tokens are controlled (horizon)")
        return found

    def max_generated_tokens(self, max_new_tokens: int) -> int:
        """The most tokens that one prompt can cost when a response has at most `max_new_tokens`."""
        return self.num_samples * min(self.max_new_tokens or max_new_tokens, max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class Iterative(Method):
    """`n` responses in each of `kappa` iterations; one of them is returned."""

    n: int = 16  # responses an iteration
    kappa: int = 16  # iterations
    early_stop: float = 0.0  # stop when all remaining draws are expected to gain less, reward units; 0: never
    stop_at: float | None = None  # stop when the best reward is at least this, reward units; null: never
    draw_cost: float = 0.0  # stop when one more draw is expected to gain less, reward units; 0: never
    accept_at: float | None = None  # stop at this acceptance (see _stopping.py), in (0, 0.5); null: never
    accept_cost: float = 0.0  # stop when one more draw is expected to raise the acceptance by less; 0: never
    select: str = "best"  # which response is returned: best | soft | regularised | poisson | random
    select_beta: float | None = None  # soft: reward units; regularised: reward units a nat; poisson: draws - 1

    selections: ClassVar[tuple[str, ...]] = SELECTIONS  # values of `select`
    budget_key: ClassVar[str | None] = "kappa"  # what a budget sets
    same_draws: ClassVar[bool] = False  # whether every iteration draws from one and the same distribution
    state_class: ClassVar[type[State]] = State  # what `init` makes

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n is {self.n}; give at least 1")
        require(self.kappa >= 1, f"kappa is {self.kappa}; give at least 1 iteration")
        require(self.early_stop >= 0, f"early_stop is {self.early_stop}; it is a reward, 0 never stops")
        require(self.early_stop == 0 or self.n > 1, "early_stop needs n above 1: one reward has no spread")
        given = self.stop_at
        require(given is None or math.isfinite(given), f"stop_at is {given}; give a reward or null")
        require(self.draw_cost >= 0, f"draw_cost is {self.draw_cost}; it is a reward, 0 never stops")
        require(self.draw_cost == 0 or self.n > 1, "draw_cost needs n above 1: one reward has no spread")
        share = self.accept_at
        require(share is None or 0 < share < 0.5, f"accept_at is {share}; it lies in (0, 0.5), or is null")
        require(0 <= self.accept_cost < 0.5, f"accept_cost is {self.accept_cost}; it lies in [0, 0.5), 0 never stops")
        few = self._reads_all and self.num_samples <= MIN_DRAWS
        key = "accept_cost" if share is None else "accept_at"
        require(not few, f"{key} has no effect with {self.num_samples} samples: it needs more than {MIN_DRAWS}")
        self._check_selection()

    @property
    def _reads_all(self) -> bool:
        return self.accept_at is not None or self.accept_cost > 0

    def _check_selection(self) -> None:
        select, beta = self.select, self.select_beta
        require(select in self.selections, f"select is {select!r}; it is one of {', '.join(self.selections)}")
        if select in NEEDS_BETA:
            require(beta is not None and beta > 0, f"select_beta is {beta}; select={select} needs it > 0")
        else:
            require(
                beta is None, f"select_beta has no effect with select={select}; set select to {', '.join(NEEDS_BETA)}"
            )

    @property
    def num_samples(self) -> int:
        return self.n * self.kappa

    @property
    def num_iterations(self) -> int:
        return self.kappa

    def init(self, prompt: Prompt, seed: int) -> Any:
        return self.state_class(prompt.prompt_id, seed)

    @property
    def asks_for(self) -> frozenset[str]:
        return self.needed

    @property
    def needed(self) -> frozenset[str]:
        """What the selection reads of a rollout: the `want` of a proposal."""
        return frozenset({"logprob"}) if self.select == "regularised" else frozenset()

    def advance(
        self, state: AnyState, rollouts: Rollouts, scores: Scores, **changes: Any
    ) -> tuple[AnyState, dict[str, float]]:
        """The state after one more iteration, done at the last one or when the search should stop, and its info.

        changes: the method's own fields of the state; `best` among them overrides `select`.
        """
        iteration, first = state.iteration + 1, state.iteration * self.n
        rule, name = (self.select, float(self.select_beta or 0.0)), (state.seed, state.prompt_id)
        ranks = selection_scores(rule, name, first, (rollouts, scores))
        best, score = select_candidate((state.best, state.selection_score), rollouts, scores, ranks)
        changes = {"best": best, "selection_score": score, **changes}
        if self._reads_all:
            changes["rewards"] = (*state.rewards, *map(float, scores.rewards))
        done, info = self._stops(iteration, changes["best"], scores)
        if self._reads_all:
            accepted, told = self._accepts(changes["rewards"])
            done, info = done or accepted, {**info, **told}
        done = done or (self.select == "poisson" and iteration * self.n >= poisson_draws(rule[1], name))
        return dataclasses.replace(state, iteration=iteration, done=done, **changes), info

    def _stops(self, iteration: int, best: Candidate | None, scores: Scores) -> tuple[bool, dict[str, float]]:
        """Whether the search ends after so many iterations, and what is expected of going on."""
        info: dict[str, float] = {}
        done = iteration >= self.num_iterations
        if best is None:
            return done, info
        if self.early_stop > 0:
            gain = expected_gain(scores.rewards, best.reward, max(0, self.num_samples - iteration * self.n))
            done = done or gain < self.early_stop
            info["expected_gain"] = gain
        if self.draw_cost > 0:
            gain = expected_gain(scores.rewards, best.reward, 1)
            done = done or gain < self.draw_cost
            info["expected_gain_of_a_draw"] = gain
        return done or (self.stop_at is not None and best.reward >= self.stop_at), info

    def _accepts(self, rewards: Sequence[float]) -> tuple[bool, dict[str, float]]:
        """Whether the best of all rewards is good enough, by `PandoraBox`, and what was found."""
        box = PandoraBox.of(rewards)
        if box is None:
            return False, {}
        info = {"acceptance": box.acceptance(self.num_samples)}
        accepted = self.accept_at is not None and info["acceptance"] > self.accept_at
        if self.accept_cost > 0:
            info["acceptance_gain"] = box.gain(self.num_samples)
            accepted = accepted or info["acceptance_gain"] < self.accept_cost
        if accepted:
            info["samples_saved"] = float(max(0, self.num_samples - len(rewards)))
        return accepted, info


@dataclass(frozen=True, kw_only=True)
class Blocks(Method):
    """Responses that grow by `block` tokens an iteration and are scored unfinished: `n` of them in the first block.

    After k iterations every unfinished response has exactly k * block tokens, so one `max_new_tokens` fits all
    prefixes of a proposal (it counts them). A subclass keeps what it wants of `candidates(...)` and continues that with
    `grow(...)`.
    """

    n: int = 16  # responses that are begun
    block: int = 8  # tokens between two looks at the reward
    max_new_tokens: int = 64  # longest response; not above the policy's own limit
    temperature: float = 0.7  # of sampling, above 0
    top_p: float = 1.0  # nucleus mass, in (0, 1]

    budget_key: ClassVar[str | None] = "n"  # what a budget sets
    asks_for = frozenset({PREFIXES})

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n is {self.n}; give at least 1")
        require(self.block >= 1, f"block is {self.block}; give at least 1 token")
        require(self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}; give at least 1")
        require(self.temperature > 0, f"temperature is {self.temperature}; equal prefixes need sampling, above 0")
        check_top_p(self.top_p)

    @property
    def num_iterations(self) -> int:
        return -(-self.max_new_tokens // self.block)

    @property
    def num_samples(self) -> int:
        return sum(self.num_rows(k) for k in range(self.num_iterations))

    def num_rows(self, iteration: int) -> int:
        """The most responses that an iteration continues."""
        return self.n

    def max_generated_tokens(self, max_new_tokens: int) -> int:
        limit = min(self.max_new_tokens, max_new_tokens)
        starts = range(0, limit, self.block)
        return sum(self.num_rows(k) * min(self.block, limit - start) for k, start in enumerate(starts))

    def grow(self, state: State, prefixes: Sequence[tuple[int, ...]]) -> Proposal:
        """One more block for each of these unfinished responses."""
        length = min((state.iteration + 1) * self.block, self.max_new_tokens)
        sampling = Sampling(self.temperature, self.top_p)
        return Proposal(
            state.iteration, len(prefixes), sampling=sampling, max_new_tokens=length, prefixes=tuple(prefixes)
        )

    def is_open(self, candidate: Candidate) -> bool:
        """Whether a response can be continued."""
        return candidate.finish_reason == "length" and len(candidate.token_ids) < self.max_new_tokens

    def best_of(self, best: Candidate | None, new: Sequence[Candidate]) -> Candidate | None:
        """What would now be returned: the best finished response or, while there is none, the newest block's best."""
        pool = [one for one in new if math.isfinite(one.reward)]
        ended = [one for one in ([best] if best else []) + pool if not self.is_open(one)]
        return max(ended or pool, key=lambda one: one.reward, default=best)


def candidates(rollouts: Rollouts, scores: Scores) -> list[Candidate]:
    """The rollouts with their rewards, NaN where there is none."""
    return [
        _candidate(item, reward, rollouts.iteration)
        for item, reward in zip(rollouts.items, scores.rewards, strict=True)
    ]


def _candidate(item: Rollout, reward: float, iteration: int) -> Candidate:
    return Candidate(
        response=item.text,
        reward=reward,
        iteration=iteration,
        particle=item.particle,
        finish_reason=item.finish_reason,
        token_ids=item.token_ids,
        logprob=item.logprob,
    )


def best_candidate(best: Candidate | None, rollouts: Rollouts, scores: Scores) -> Candidate | None:
    """The better of `best` and these rollouts. The first seen wins a tie; a particle without a reward never wins."""
    held = (best, best.reward if best else -math.inf)
    return select_candidate(held, rollouts, scores, np.asarray(scores.rewards, dtype=np.float64))[0]


def select_candidate(
    held: tuple[Candidate | None, float], rollouts: Rollouts, scores: Scores, ranks: np.ndarray
) -> tuple[Candidate | None, float]:
    """The candidate of the highest selection score and that score; ranks: those of these rollouts, [n].

    The first seen wins a tie; a response without a finite rank is never chosen.
    """
    best, score = held
    top, chosen = score if best else -math.inf, None
    for drawn in zip(rollouts.items, scores.rewards, ranks.tolist(), strict=True):
        if math.isfinite(drawn[2]) and drawn[2] > top:
            top, chosen = drawn[2], drawn
    return (best, score) if chosen is None else (_candidate(*chosen[:2], rollouts.iteration), top)


def require(condition: bool, message: str) -> None:
    """A `ValueError` for whoever wrote the configuration."""
    if not condition:
        raise ValueError(message)


def check_sampling(temperature: float, top_p: float = 1.0) -> None:
    """Ranges of `temperature` and `top_p` where temperature 0 decodes greedily.

    Raises:
        ValueError: one is out of range, or top_p is set and has no effect.
    """
    require(temperature >= 0, f"temperature is {temperature}; 0 is greedy, above 0 samples")
    check_top_p(top_p)
    require(temperature > 0 or top_p == 1, "top_p has no effect at temperature=0; set temperature too")


def check_top_p(top_p: float, key: str = "top_p") -> None:
    """Raises ValueError unless `top_p`, the value of `key`, is a probability mass above 0."""
    require(0 < top_p <= 1, f"{key} is {top_p}; it is a probability mass in (0, 1]")


def check_horizon(horizon: int | None) -> None:
    """Raises ValueError unless `horizon` controls a position."""
    require(horizon is None or horizon >= 1, f"horizon is {horizon}; control at least 1 position, or null for all")


BUDGET_UNITS = ("samples", "reward_calls", "generated_tokens")
TOTAL = "total"  # the unit of a budget over all prompts, in samples


def planned_cost(method: Method, max_new_tokens: int) -> dict[str, int]:
    """The most that one prompt can cost under a method, by unit of `BUDGET_UNITS`.

    Samples are rows of proposals; each is scored once. What was really spent is in the ledger of every row.
    """
    tokens = method.max_generated_tokens(max_new_tokens)
    return {"samples": method.num_samples, "reward_calls": method.num_samples, "generated_tokens": tokens}


def check_budgets(methods: Mapping[str, Method], unit: str = "samples", max_new_tokens: int = 128) -> str | None:
    """None when all methods plan the same cost in `unit`; else one sentence for whoever set them side by side."""
    require(unit in BUDGET_UNITS, f"budget unit is {unit!r}; it is one of {', '.join(BUDGET_UNITS)}")
    costs = {name: planned_cost(method, max_new_tokens)[unit] for name, method in methods.items()}
    if len(set(costs.values())) <= 1:
        return None
    listed = ", ".join(f"{name} {cost}" for name, cost in costs.items())
    return f"the methods have unequal budgets in {unit} per prompt: {listed}"


def fit_budget(method: Any, unit: str, amount: int, max_new_tokens: int = 128) -> Any:
    """The method with its `budget_key` (`kappa` of most) set so that its planned cost in `unit` is `amount`.

    Raises:
        ValueError: the method has no such key, or none of its values costs the amount.
    """
    require(unit in BUDGET_UNITS, f"budget unit is {unit!r}; it is one of {', '.join(BUDGET_UNITS)}")
    kind, key = type(method).__name__, method.budget_key
    cost = planned_cost(method, max_new_tokens)[unit]
    if cost == amount:
        return method
    require(key is not None, f"{kind} costs {cost} {unit} and has no key that fits it to {amount}")
    value = getattr(method, key)
    more = planned_cost(dataclasses.replace(method, **{key: value + 1}), max_new_tokens)[unit] - cost
    wanted = value + (amount - cost) // more
    one = "iteration" if key == "kappa" else key
    words = f"a budget of {amount} {unit} is no multiple of one {one} of {kind}, {more}; change n or the budget"
    require(wanted >= 1, words)
    fitted = dataclasses.replace(method, **{key: wanted})
    require(planned_cost(fitted, max_new_tokens)[unit] == amount, words)
    return fitted


def check_total(name: str, method: Any) -> None:
    """Raises ValueError where a budget over all prompts cannot be shared out by iterations of this method."""
    alike = isinstance(method, Iterative) and method.n > 1 and method.num_samples == method.n * method.kappa
    require(
        alike,
        f"method.{name}: budget=total shares iterations out; it needs a method whose kappa iterations draw n responses "
        f"each, n above 1, and no final_draws",
    )


def read_budget(budget: Any) -> tuple[str, int]:
    """(unit, amount) of `256` (samples), `samples:256`, `reward_calls:256`, `generated_tokens:16384` or `total:8192`.

    All are per prompt but `total`, samples over all prompts.

    Raises:
        ValueError: it is written otherwise.
    """
    unit, _, amount = budget.partition(":") if isinstance(budget, str) else ("samples", "", budget)
    given = f"budget is {budget!r}"
    units = (*BUDGET_UNITS, TOTAL)
    require(unit in units, f"{given}; write budget=256 (samples) or {' or '.join(units)} as in samples:256")
    whole = amount.strip().isdecimal() if isinstance(amount, str) else type(amount) is int
    require(whole and int(amount) > 0, f"{given}; the amount is a whole number above 0")
    return unit, int(amount)


def total_of(budget: Any) -> int | None:
    """The samples over all prompts that `total:8192` gives; None where the budget is one per prompt, or none."""
    unit, amount = ("", None) if budget is None else read_budget(budget)
    return amount if unit == TOTAL else None


def fit_budgets(methods: Mapping[str, Any], budget: Any, max_new_tokens: int) -> dict[str, Any]:
    """Every method at one cost per prompt, written as `read_budget` reads it; None and a total leave them as they are.

    Raises:
        ValueError: the budget cannot be read, or a method cannot meet it (named).
    """
    if budget is None:
        return dict(methods)
    unit, amount = read_budget(budget)
    if unit == TOTAL:
        for name, method in methods.items():
            check_total(name, method)
        return dict(methods)
    fitted = {}
    for name, method in methods.items():
        try:
            fitted[name] = fit_budget(method, unit, amount, max_new_tokens)
        except ValueError as error:
            raise ValueError(f"method.{name}: {error}") from error
    return fitted
