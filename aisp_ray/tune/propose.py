"""Who says which setting is tried next: a list (sweeps) or an Optuna sampler.

Settings are asked for in batches of a fixed size and told in order, so the sequence of trials is a function of the
seed and the values alone: a search that was killed proposes the same trials again and finds their values on disk.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from aisp_ray.tune.space import Axis, Space
from aisp_ray.tune.trial import Trial

SEARCHES = ("tpe", "random", "grid", "one_at_a_time")
_MOST_REPEATS = 50  # settings seen before, in a row, after which a space counts as exhausted


class Proposer(Protocol):
    """Where settings come from."""

    def ask(self, count: int) -> list[Mapping[str, Any]]:
        """Up to `count` settings that were not asked for before; none: the search is over."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """The outcome of all trials of the last `ask`, in its order."""


class ListProposer:
    """Given settings, in order."""

    def __init__(self, settings: Sequence[Mapping[str, Any]]):
        self._left = list(settings)

    def __len__(self) -> int:
        return len(self._left)

    def ask(self, count: int) -> list[Mapping[str, Any]]:
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing to learn."""


class OptunaProposer:
    """An Optuna study: tree-structured Parzen estimator (Bergstra et al., 2011) or random search."""

    def __init__(self, space: Space, search: str, trials: int, seed: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._axes = space.axes()
        self._left = trials
        self._study = optuna.create_study(direction="maximize", sampler=_sampler(search, trials, seed))
        self._distributions = {axis.key: _distribution(axis) for axis in self._axes}
        self._asked: list[Any] = []  # Optuna's trials of the last batch
        self._values: dict[str, float | None] = {}  # settings asked before -> value; None: not known yet or invalid
        self._preset: Trial | None = None

    def start_from(self, preset: Trial) -> None:
        """What the preset scored, if it lies in the space."""
        self._preset = preset
        self._values[_key(preset.settings)] = preset.mean()
        params = {axis.key: _encode(axis, preset.settings[axis.key]) for axis in self._axes}
        if None not in params.values() and math.isfinite(preset.mean()):
            frozen = self._optuna.trial.create_trial(
                params=params, distributions=self._distributions, value=preset.mean()
            )
            self._study.add_trial(frozen)

    def ask(self, count: int) -> list[Mapping[str, Any]]:
        self._asked = []
        found: list[Mapping[str, Any]] = []
        repeats = 0
        while len(found) < min(count, self._left) and repeats < _MOST_REPEATS:
            asked = self._study.ask(self._distributions)
            settings = {axis.key: _decode(axis, asked.params[axis.key]) for axis in self._axes}
            key = _key(settings)
            if key in self._values:
                repeats += 1
                self._tell_again(asked, self._values[key])
                continue
            self._values[key] = None
            self._asked.append(asked)
            found.append(settings)
        self._left = self._left - len(found) if found else 0
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        states = self._optuna.trial.TrialState
        for asked, trial in zip(self._asked, trials, strict=True):
            value = trial.score(self._preset or trial)
            if trial.state == "invalid" or not math.isfinite(value):
                self._study.tell(asked, state=states.FAIL)
                continue
            self._values[_key(trial.settings)] = value
            if trial.state == "stopped":
                asked.report(value, trial.num_seen)
                self._study.tell(asked, state=states.PRUNED)
            else:
                self._study.tell(asked, value)
        self._asked = []

    def _tell_again(self, asked: Any, value: float | None) -> None:
        """A setting that is known: told at once, so that the sampler moves on."""
        if value is None or not math.isfinite(value):
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, value)


def make_proposer(search: str, space: Space, trials: int | None, seed: int, preset: Trial) -> Proposer:
    """The proposer of a search; the preset, trial 0, is not proposed again."""
    if search in ("grid", "one_at_a_time"):
        listed = space.grid() if search == "grid" else space.one_at_a_time(preset.settings)
        return ListProposer([settings for settings in listed if _key(settings) != _key(preset.settings)])
    assert trials is not None
    proposer = OptunaProposer(space, search, trials, seed)
    proposer.start_from(preset)
    return proposer


def _sampler(search: str, trials: int, seed: int) -> Any:
    import optuna

    if search == "random":
        return optuna.samplers.RandomSampler(seed=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # multivariate and constant_liar are marked experimental
        return optuna.samplers.TPESampler(
            seed=seed % 2**32, multivariate=True, constant_liar=True, n_startup_trials=max(4, trials // 4)
        )


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.ordered:
        return IntDistribution(0, len(axis.values) - 1)  # a place in the list: its neighbours are alike
    if axis.values:
        return CategoricalDistribution(list(range(len(axis.values))))
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def _decode(axis: Axis, value: Any) -> Any:
    if axis.values:
        return axis.values[value]
    return value if axis.whole else float(f"{value:.6g}")


def _encode(axis: Axis, value: Any) -> Any:
    """The value as the study holds it; None where it is not in the space."""
    if axis.values:
        return axis.values.index(value) if value in axis.values else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not axis.low <= value <= axis.high or axis.step is not None:
        return None
    return value if not axis.whole else int(value) if value == int(value) else None


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)
