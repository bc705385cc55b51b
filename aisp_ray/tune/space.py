"""What is searched: keys of one method, their values or ranges, and the budget that every setting gets."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aisp_ray import config
from aisp_ray.config import ConfigError
from aisp_ray.methods.base import Method, fit_budget

Settings = Mapping[str, Any]  # searched keys -> values

_RANGE_KEYS = ("low", "high", "log", "step", "points")


@dataclass(frozen=True)
class Axis:
    """One searched key: a list of values, or a range from low to high."""

    key: str
    values: tuple[Any, ...] = ()  # the choices; empty for a range
    low: float = math.nan
    high: float = math.nan
    log: bool = False  # a range searched on its logarithm
    step: float | None = None  # a range's raster; null: any number
    points: int = 5  # of a range in a sweep

    @property
    def ordered(self) -> bool:
        """Whether the list rises, so that neighbours in it are alike to a sampler."""
        numbers = [v for v in self.values if isinstance(v, int | float) and not isinstance(v, bool)]
        return len(numbers) == len(self.values) > 1 and all(a < b for a, b in itertools.pairwise(numbers))

    @property
    def whole(self) -> bool:
        """Whether a range is of whole numbers: by the type of the method's field, once `Space.typed` has read it."""
        return all(isinstance(v, int) for v in (self.low, self.high)) and isinstance(self.step or 1, int)

    def grid(self) -> tuple[Any, ...]:
        """The values of a sweep."""
        if self.values:
            return self.values
        if self.points == 1:
            return (self.low,)
        at = [i / (self.points - 1) for i in range(self.points)]
        if self.log:
            found = [self.low * (self.high / self.low) ** share for share in at]
        else:
            found = [self.low + (self.high - self.low) * share for share in at]
        return tuple(dict.fromkeys(self._on_raster(value) for value in found))

    def _on_raster(self, value: float) -> float:
        if self.step is not None:
            value = self.low + round((value - self.low) / self.step) * self.step
        return round(value) if self.whole else float(f"{value:.6g}")


def make_axis(key: str, given: Any) -> Axis:
    """The axis of one entry of `keys`.

    Raises:
        ValueError: it is neither a list of values nor a range.
    """
    if isinstance(given, list | tuple):
        if not given or len({repr(value) for value in given}) < len(given):
            raise ValueError(f"keys.{key}={list(given)}: give at least one value, each once")
        return Axis(key, tuple(given))
    if not isinstance(given, Mapping):
        raise ValueError(f"keys.{key}={given!r}: give a list of values or {{low: ..., high: ..., log: true}}")
    for name in given:
        if name not in _RANGE_KEYS:
            raise ValueError(f"keys.{key}.{name}: there is no such key.{config.suggest(str(name), _RANGE_KEYS)}")
    axis = Axis(key, **{"low": math.nan, "high": math.nan, **given})
    for name in ("low", "high"):
        value = getattr(axis, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"keys.{key}.{name} is {value}; a range needs low and high, two numbers")
    if not axis.low < axis.high:
        raise ValueError(f"keys.{key}: low is {axis.low} and high is {axis.high}; low must be below high")
    if axis.log and (axis.low <= 0 or axis.step is not None):
        raise ValueError(f"keys.{key}: log=true needs low above 0 and no step")
    if axis.step is not None and not axis.step > 0:
        raise ValueError(f"keys.{key}.step is {axis.step}; it must be above 0")
    if not isinstance(axis.points, int) or axis.points < 1:
        raise ValueError(f"keys.{key}.points is {axis.points}; give the number of values in a sweep")
    return axis


@dataclass(frozen=True, kw_only=True)
class Space:
    """Settings of a search space (conf/tune)."""

    method: str = ""  # the preset of conf/method whose keys are searched; its values are what a search must beat
    keys: dict[str, Any] = dataclasses.field(default_factory=dict)  # key -> [values] or {low, high, log, step, points}
    set: dict[str, Any] = dataclasses.field(default_factory=dict)  # keys of the preset that are set for all settings
    samples: int | None = None  # responses per prompt that every setting gets, through kappa; null: as the preset

    def __post_init__(self) -> None:
        if not self.method:
            raise ValueError("method must be set: the name of a preset of conf/method")
        if not self.keys:
            raise ValueError("keys must be set: at least one key of the method with its values")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples is {self.samples}; give at least 1, or null for the preset's own budget")
        for key in self.set:
            if key in self.keys:
                raise ValueError(f"set.{key} has no effect: {key} is searched; leave it out of set or of keys")
        if "n" in self.keys and "kappa" in self.keys:
            raise ValueError("keys holds n and kappa; search one of them, the other follows from the equal budget")
        self.axes()

    def axes(self) -> tuple[Axis, ...]:
        return tuple(make_axis(key, given) for key, given in self.keys.items())

    def typed(self, target: str) -> Space:
        """The space with the ends and the raster of ranges as the types of the method's fields.

        So {low: 0, high: 2} is 0 to 2 and all between of a number, and 0, 1, 2 of a whole number.

        target: `_target_` of the method's preset. Keys that it lacks stay: `Workbench.centre` names them.

        Raises:
            ConfigError: a range's number is none of its field's type.
        """
        hints = typing.get_type_hints(config.schema_of(target, f"method.{self.method}"))
        keys = {key: _typed(key, given, hints[key]) if key in hints else given for key, given in self.keys.items()}
        return dataclasses.replace(self, keys=keys)

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last key fastest."""
        axes = self.axes()
        return [
            dict(zip((axis.key for axis in axes), values, strict=True))
            for values in itertools.product(*(axis.grid() for axis in axes))
        ]

    def one_at_a_time(self, centre: Settings) -> list[dict[str, Any]]:
        """Each key's values in turn while the other keys stay at `centre`."""
        found = [{**centre, axis.key: value} for axis in self.axes() for value in axis.grid()]
        return list({repr(sorted(settings.items())): settings for settings in found}.values())


def _typed(key: str, given: Any, hint: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    numbers = {name: given[name] for name in ("low", "high", "step") if given.get(name) is not None}
    return {
        **given,
        **{name: config.convert(value, hint, f"tune.keys.{key}.{name}") for name, value in numbers.items()},
    }


@dataclass(frozen=True)
class Workbench:
    """A space and the preset it starts from: makes methods of one budget."""

    space: Space
    keys: Mapping[str, Any]  # of the preset of conf/method, `_target_` among them, overrides applied

    @property
    def where(self) -> str:
        return f"method.{self.space.method}"

    @property
    def preset(self) -> dict[str, Any]:
        """What all settings start from: the preset with the space's `set`."""
        return {**self.keys, **self.space.set}

    def samples(self) -> int:
        """Responses per prompt, equal for all settings."""
        return self.space.samples or config.build(self.preset, self.where).num_samples

    def centre(self) -> dict[str, Any]:
        """The preset's own values of the searched keys, at the common budget."""
        method = self.make({})
        fields = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
        for key in self.space.keys:
            if key not in fields:
                raise ConfigError(f"tune.keys.{key}: {self.where} has no such key.{config.suggest(key, fields)}")
        return {key: getattr(method, key) for key in self.space.keys}

    def make(self, settings: Settings) -> Method:
        """The method under these settings.

        Raises:
            ConfigError: the method refuses them, or they do not fit the budget.
        """
        method = config.build({**self.preset, **settings}, self.where)
        samples = self.samples()
        try:
            if "kappa" in settings and hasattr(method, "n"):
                if samples % method.kappa:
                    raise ValueError(f"kappa {method.kappa} does not divide the budget of {samples} samples")
                return dataclasses.replace(method, n=samples // method.kappa)
            return fit_budget(method, "samples", samples)
        except ValueError as error:
            raise ConfigError(f"{self.where}: {error}") from error


def text_of(settings: Settings, shown: Sequence[str] | None = None) -> str:
    """'sigma=0.5 alpha=0.99' for people."""
    keys = shown if shown is not None else list(settings)
    return " ".join(f"{key}={plain(settings[key])}" for key in keys if key in settings) or "the preset"


def plain(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
