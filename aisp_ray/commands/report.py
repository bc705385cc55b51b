"""The command `python jobs/report.py out=...`: its keys, its help, and what it prints."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aisp_ray import config
from aisp_ray.config import ConfigError

HELP = """Table, figures and one page from the rows of one or several evaluations, or of searches of settings.

  python jobs/report.py out=outputs/demo
  python jobs/report.py out=outputs/tune
  python jobs/report.py out=[outputs/seed0,outputs/seed1] to=outputs/both baseline=best_of_n_tuned
  python jobs/report.py out=outputs/demo judges=[demo_gold] judge_curves=true
  python jobs/report.py out=outputs/demo metrics=[diversity,words,coherence] metric.coherence.encoder=path/to/encoder
"""
GROUPS = {"metric": "metrics", "judges": "judges", "tracker": "trackers"}  # folder of conf -> the key of its choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Keys of a report."""

    out: tuple[str, ...] = ()  # folders or URIs that jobs/eval.py or jobs/tune.py wrote; several share one report
    to: str | None = None  # where the report goes; null: <first out>/report
    methods: tuple[str, ...] = ()  # only these methods' rows of evaluations; []: all that are there
    baseline: str = "best_of_n"  # method or line of the table that differences are against
    seed: int = 0  # names the draws of the bootstrap
    metrics: tuple[str, ...] = ("diversity", "diversity_plus_one", "words")  # choices of conf/metric
    judges: tuple[str, ...] = ()  # choices of conf/reward that score the responses now, beside those of the run
    judge_curves: bool = False  # judges also score the best response after every iteration (needs run.particles=true)
    device: str = "cpu"  # where judges score: cpu | cuda
    trackers: tuple[str, ...] = ()  # choices of conf/tracker that get the table, the curves and the files

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out is empty; give out=<the folder that jobs/eval.py or jobs/tune.py wrote>")
        if self.judge_curves and not self.judges:
            raise ValueError("judge_curves has no effect without judges; give judges=[...] too")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it is cpu or cuda")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 written, 2 the command or an output is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "help"} & set(words):
        print(HELP + "\n" + describe(ReportSettings, GROUPS))
        return 0
    try:
        settings, groups = read_words(words, ReportSettings, GROUPS)
        print(write(settings, groups))
    except (ValueError, OSError) as error:  # OSError: a place that cannot be read or written, in its own words
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(settings: ReportSettings, groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the report, hand it to the trackers, and return what the command prints."""
    from aisp_ray.files import inside
    from aisp_ray.report.rejudge import Rejudging
    from aisp_ray.report.write import make_report, report_text

    rejudging = Rejudging(
        judges=groups["judges"], baseline=settings.baseline, curves=settings.judge_curves, device=settings.device
    )
    report = make_report(
        settings.out,
        settings.to,
        baseline=settings.baseline,
        seed=settings.seed,
        metrics=groups["metric"],
        rejudging=rejudging,
        methods=settings.methods,
    )
    for tracker in groups["tracker"].values():
        tracker.log(report)
    lines = [report_text(report), f"page     {report.page}"]
    if report.records:
        lines.append(f"tables   {inside(report.to, 'table.md')} .tex .csv, budgets.md")
    return "\n".join(lines)


# ---------------------------------------------------------------- key=value words of a small command


def read_words(words: Sequence[str], cls: type, groups: Mapping[str, str]) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The settings object of a command, and its groups' choices, built, by name.

    groups: singular folder of conf -> the key that lists its choices. `metric.coherence.batch_size=8` sets a choice's
    key.

    Raises:
        ConfigError: one clear sentence.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    inner: dict[tuple[str, str], dict[str, Any]] = {}
    hints = config.typing.get_type_hints(cls)
    for key, text in config.parse_arguments(words).items():
        group, *path = key.split(".")
        if len(path) == 2 and group in groups:
            inner.setdefault((group, path[0]), {})[path[1]] = config.parse_value(text)
        elif key not in known:
            raise ConfigError(f"{key}={text}: there is no such key.{config.suggest(key, known)}")
        else:
            value = config.name_list(text) if "tuple" in str(hints[key]) else _plain(text, hints[key])
            values[key] = config.convert(value, hints[key], key)
    try:
        settings = cls(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return settings, {group: _choices(group, getattr(settings, key), inner) for group, key in groups.items()}


def _plain(text: str, hint: Any) -> Any:
    value = config.parse_value(text)
    wants_text = "str" in str(hint) and not isinstance(value, str) and value is not None
    return text if wants_text else value


def _choices(group: str, names: Sequence[str], inner: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    for own, name in inner:
        if own == group and name not in names:
            raise ConfigError(f'{group}.{name}: "{name}" is not among the chosen ones.{config.suggest(name, names)}')
    return {
        name: config.build({**_read(group, name), **inner.get((group, name), {})}, f"{group}.{name}") for name in names
    }


def _read(group: str, name: str) -> dict[str, Any]:
    """The keys of a choice; those with underscores, but `_target_`, are for the evaluation."""
    values = config.read_choice(group, name)
    return {key: value for key, value in values.items() if key == "_target_" or not key.startswith("_")}


def describe(cls: type, groups: Mapping[str, str]) -> str:
    """The keys of a command with defaults and meaning, and the choices of its groups with theirs."""
    meaning = config.comments(cls)
    lines = ["Keys (key=value):"]
    for field in dataclasses.fields(cls):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        lines.append(f"  {field.name}={config_text(default)}".ljust(34) + f"  {meaning.get(field.name, '')}")
    for group, key in groups.items():
        lines.append(f"\nChoices of {key} (conf/{config.FOLDER.get(group, group)}):")
        lines += [f"  {name}".ljust(34) + f"  {text}" for name, text in config.choices(group).items()]
    return "\n".join(lines)


def config_text(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
