"""What all commands share: one parser of key=value, one help, one way to fail.

A command has keys of its own, the fields of a dataclass, and groups of conf/ from which it chooses; conf/NAME.yaml says
what it chooses alone. `errors` lists the exit codes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from aisp_ray import config
from aisp_ray.config import ConfigError
from aisp_ray.errors import FAILED, INTERRUPTED, OK, RedactedStream, RefusedError, redacted_values, refuse, wrapped
from aisp_ray.plan import RunSettings

_P = TypeVar("_P")  # a plan
_WIDEST = 120  # columns that are used where the terminal has more
_HELP = {"--help", "-h", "help"}
_FLAGS = {
    "dry_run": "true: check everything that can be checked before models load, and say what would run",
    "print_config": "true: show the configuration that would be used",
}


@dataclass(frozen=True)
class Command:
    """A command line: what it is for, its own keys, and the groups of conf/ that it chooses from."""

    name: str
    about: str  # what --help begins with
    settings: type  # a dataclass of its own keys
    groups: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()  # of _FLAGS
    experiments: bool = False  # whether experiment=NAME chooses for all groups at once


@dataclass(frozen=True)
class Composed:
    """A command as it was read: its settings object, and the keys of every chosen YAML, not built yet."""

    settings: Any
    groups: dict[str, dict[str, dict[str, Any]]]  # group -> choice name -> keys
    typed: frozenset[str]  # the keys on the command line
    chosen: Mapping[str, Any]  # group -> what chose in it: names of conf/ and paths

    def tree(self) -> dict[str, Any]:
        """As `print_config=true` shows it: a group with one choice is flat, others are by name."""
        shown: dict[str, Any] = {}
        for group, chosen in self.groups.items():
            shown[group] = chosen if group in config.MANY else next(iter(chosen.values()), None)
        return {**shown, **dataclasses.asdict(self.settings)}

    def built(self, group: str) -> dict[str, Any]:
        """The settings objects of a group, by choice name."""
        where = f"{group}.{{}}" if group in config.MANY else group
        return {name: config.build(values, where.format(name)) for name, values in self.groups[group].items()}

    def one(self, group: str) -> Any:
        """The settings object of a group of one choice; None where it is null."""
        return next(iter(self.built(group).values()), None)


def main(command: Command, carry_out: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Print the help, or return the exit code of `carry_out(words)`: what it refuses is one sentence and code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # an ASCII terminal
    with contextlib.redirect_stdout(RedactedStream(sys.stdout)), contextlib.redirect_stderr(RedactedStream(sys.stderr)):
        return _code_of(command, carry_out, words)


def _open_streams() -> None:
    """Put the null device where the caller has closed one (`>&-`): prints succeed, and no file gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115  # for good
            setattr(sys, name, stream)
            try:
                os.fstat(number)  # opened just now, or by a library before
            except OSError:
                os.dup2(stream.fileno(), number)


def _code_of(command: Command, carry_out: Callable[[list[str]], int], words: list[str]) -> int:
    try:
        words = [_as_utf8(word) for word in words]
        if not _HELP & set(words):
            return carry_out(words)
        with for_a_reader():
            tell(help_text(command, [word for word in words if word not in _HELP]))
        return OK
    except ValueError as error:  # a ConfigError, or a setting that something below refuses
        return refuse(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:  # of somebody's own module: never a success
        refuse([f"something called exit({error.code})"])
        return FAILED


def _as_utf8(word: str) -> str:
    """An argument as it was typed, also in an ASCII locale, where Python reads each byte of a letter as a surrogate."""
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise config.ConfigError(f"{word!a} is not UTF-8") from None


@contextlib.contextmanager
def for_a_reader() -> Iterator[None]:
    """Around prints: that nobody reads them any more (`| head -1`) is no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def screen_width() -> int:
    """Columns of the terminal, at most 120; 120 where there is none."""
    return min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)


def tell(text: str) -> None:
    """Print lines, wrapped to a terminal."""
    width = screen_width() if sys.stdout.isatty() else len(text)
    for line in text.split("\n"):
        print(*wrapped(line, width), sep="\n")


# ---------------------------------------------------------------- reading


def read(command: Command, words: Sequence[str]) -> tuple[dict[str, bool], Composed]:
    """The flags, and the configuration of conf/NAME.yaml, an experiment and the words.

    Raises:
        ConfigError: one sentence for what is wrong.
    """
    arguments = config.parse_arguments(words)
    flags = {
        name: config.convert(config.parse_value(arguments.pop(name, "false")), bool, name) for name in command.flags
    }
    defaults = defaults_of(command.name)
    if command.experiments and "experiment" in arguments:
        defaults |= read_experiment(command, arguments.pop("experiment"))
    hints = typing.get_type_hints(command.settings)
    own = {key: value for key, value in defaults.items() if key in hints}
    choosing = {config.CHOSEN_BY.get(group, group): group for group in command.groups}
    picked = {group: defaults.get(key) for key, group in choosing.items()}
    overrides = dict(defaults.get("set") or {})
    for key, text in arguments.items():
        if "." in key:
            overrides[key] = text
        elif key in hints:
            own[key] = config.parse_as(text, hints[key])
        elif key in choosing:
            picked[choosing[key]] = _chosen(choosing[key], text)
        else:
            raise ConfigError(f"{key}={text}: there is no such key.{config.suggest(key, [*choosing, *hints])}")
    settings = config.build({"_target_": f"{command.settings.__module__}.{command.settings.__qualname__}", **own}, "")
    picked |= {group: getattr(settings, key) for key, group in choosing.items() if key in hints}
    return flags, Composed(settings, config.compose(picked, overrides), frozenset(arguments), picked)


def config_shown(flags: Mapping[str, bool], composed: Composed) -> bool:
    """Print the configuration if `print_config` asks for it, which then is all that is done."""
    if flags["print_config"]:
        with for_a_reader():
            print(yaml.safe_dump(redacted_values(composed.tree()), sort_keys=False), end="")
    return flags["print_config"]


def prepared(
    composed: Composed, make: Callable[[Composed], _P], check: Callable[[_P], list[str]], pin: Callable[[_P], _P]
) -> _P:
    """The plan that is made of a configuration, checked, and pinned to what its names mean today.

    Raises:
        RefusedError: a line per problem.
    """
    plan = make(composed)
    if problems := check(plan):
        raise RefusedError("\n".join(problems))
    return pin(plan)


def _chosen(group: str, text: str) -> Any:
    """The names behind `group=`; [] rather than None, which stands for the usual choices."""
    names = config.name_list(config.parse_value(text) if group in config.MANY else text)
    return [] if group in config.OPTIONAL and names == ["null"] else names


def run_settings(composed: Composed) -> RunSettings:
    """How the run is carried out."""
    run = composed.one("run")
    if not isinstance(run, RunSettings):
        raise ConfigError(f"run: {type(run).__name__} is not a RunSettings")
    return run


def defaults_of(name: str) -> dict[str, Any]:
    """What a command chooses alone: conf/NAME.yaml."""
    path = config.conf_folder() / f"{name}.yaml"
    return (config.load_yaml(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def read_experiment(command: Command, name: str) -> dict[str, Any]:
    """Keys of conf/experiment/<name>.yaml: choices, the command's own keys, overrides under `set`, and `published`."""
    known = config.choices("experiment")
    if name not in known:
        raise ConfigError(f"experiment={name}: there is no such experiment.{config.suggest(name, known)}")
    values = config.load_yaml((config.conf_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    own = [*command.groups, *(field.name for field in dataclasses.fields(command.settings)), "set"]
    for key in values:
        if key not in (*own, "published"):
            raise ConfigError(f"conf/experiment/{name}.yaml: {key}: no such key.{config.suggest(key, own)}")
    return values


# ---------------------------------------------------------------- help


def help_text(command: Command, words: Sequence[str] = ()) -> str:
    """The command's keys, groups and choices; with `group=choice` words the keys of these choices instead."""
    asked = {key: value for key, mark, value in (word.partition("=") for word in words) if mark}
    known = {config.CHOSEN_BY.get(group, group): group for group in command.groups}
    parts = [
        _keys(known[key], name) for key, value in asked.items() if key in known for name in config.name_list(value)
    ]
    if parts:
        return "\n\n".join(parts)
    parts = [*(_fitted(part) for part in command.about.rstrip().split("\n\n")), _own_keys(command)]
    if command.groups:
        parts.append(_defaults(command))
        same = {"judges": "reward", "heldout": "data"}  # choices that are listed already
        parts += [_choices(group) for group in command.groups if same.get(group) not in command.groups]
        parts += [_choices("experiment")] if command.experiments else []
        key = next(iter(known))
        example = f"{key}={next(iter(config.choices(known[key])))}"
        parts.append(f"The keys of a choice: python jobs/{command.name}.py {example} --help")
    return "\n\n".join(parts)


def _fitted(part: str) -> str:
    """A paragraph in lines of the screen's width; of examples, what one does stands below it where it does not fit."""
    lines, width = part.split("\n"), screen_width()
    if not any(line.startswith(" ") for line in lines):
        return textwrap.fill(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(re.sub(r"(?<=\S) {3,}(?=\S)", "\n      ", each) if len(each) > width else each for each in lines)


def _own_keys(command: Command) -> str:
    lines = ["Keys, each as key=value (default, meaning):"]
    lines += [_row(name, "false", _FLAGS[name]) for name in command.flags]
    return "\n".join(lines + _fields(command.settings))


def _defaults(command: Command) -> str:
    chosen = {key: value for key, value in defaults_of(command.name).items() if key in command.groups}
    shown = ", ".join(f"{key}={as_typed(value)}" for key, value in chosen.items())
    notes = []
    if {"judges", "reward"} <= {*command.groups}:
        notes.append("judges=[...] takes choices of reward, which score selected responses only.")
    if "heldout" in command.groups:
        notes.append("heldout= takes a choice of data.")
    return textwrap.fill(" ".join([f"Alone it chooses {shown}." if shown else "", *notes]).strip(), screen_width())


def _choices(group: str) -> str:
    key = config.CHOSEN_BY.get(group, group)
    lines = [f"{key}=[...]" if group in config.MANY else f"{key}="]
    lines[0] += f"   (conf/{config.FOLDER.get(group, group)})"
    known = config.choices(group)
    broad = max([24, *map(len, known)])
    return "\n".join(lines + [_cut_row(f"  {name:<{broad}} ", text) for name, text in known.items()])


def _cut_row(head: str, meaning: str) -> str:
    """One line of the terminal; `NAME --help` has the whole text."""
    return (head + textwrap.shorten(meaning, max(screen_width() - len(head), 1), placeholder=" ...")).rstrip()


def _keys(group: str, name: str) -> str:
    """The keys of one choice, with what its YAML sets."""
    values = config.read_choice(group, name)
    cls = config.schema_of(values["_target_"], f"{group}.{name}")
    about = config.about_choice(group, name)
    name = config.choice_name(name)
    prefix = f"{group}.{name}." if group in config.MANY else f"{group}."
    return "\n".join([f"{prefix}key of {name}: {about}", *_fields(cls, values)])


def _fields(cls: type, values: Mapping[str, Any] | None = None) -> list[str]:
    meaning = config.comments(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return [_row(f.name, _default(f, values or {}), meaning.get(f.name, "")) for f in fields]


def _default(field: dataclasses.Field[Any], values: Mapping[str, Any]) -> str:
    if field.name in values:
        return as_typed(values[field.name])
    if field.default_factory is not dataclasses.MISSING:
        return as_typed(field.default_factory())
    return "(must be set)" if field.default is dataclasses.MISSING else as_typed(field.default)


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_typed(item)}' for key, item in value.items())}}}"
    return str(value)


def _row(name: str, default: str, meaning: str) -> str:
    head = f"  {name:<24} {default:<16} "
    return (
        textwrap.fill(
            meaning,
            screen_width(),
            initial_indent=head,
            subsequent_indent=" " * 29,
            break_long_words=False,
            break_on_hyphens=False,
        )
        or head.rstrip()
    )
