"""Configuration: `conf/` groups, a command line of key=value, checked and built without torch or Ray.

A group choice is one YAML file: `_target_` names a frozen dataclass, the other keys set its fields. The dataclass is
the schema: an unknown key or a wrong type is one sentence with the nearest known word.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.resources
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aisp_ray.errors import RefusedError

GROUPS = ("method", "policy", "reward", "judges", "data", "run")
MANY = ("method", "judges")  # groups of which a run may hold several choices, addressed by name
FOLDER = {"judges": "reward"}  # a judge is a reward model that only looks at selected responses


class ConfigError(RefusedError):
    """One clear sentence for whoever typed the command or wrote the YAML."""


def locate(path: str) -> Any:
    """The object at "package.module:name" or "package.module.name".

    Raises:
        ValueError: the path does not lead to an object; says which part failed.
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name:
        raise ValueError(f"{path!r} is not a path to an object; write it as package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path!r}: there is no module {error.name!r} on the Python path") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise ValueError(f"{path!r}: module {module_name!r} has no {name!r}") from error


def conf_folder() -> Path:
    """The folder of the configuration: ./conf, the repository's, or the one installed with the package."""
    found = [Path("conf"), Path(__file__).resolve().parent.parent / "conf"]
    for folder in found:
        if (folder / "eval.yaml").is_file():
            return folder
    return Path(str(importlib.resources.files("aisp_ray").joinpath("conf")))


def suggest(word: str, known: Iterable[str]) -> str:
    """'Did you mean "x"? ' or nothing, then the known words."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f"{hint} Known: {', '.join(words) or 'none'}."


def choices(group: str, folder: Path | None = None) -> dict[str, str]:
    """The YAML files of a group, name -> one-line description (the file's first comment)."""
    place = (folder or conf_folder()) / FOLDER.get(group, group)
    found = {}
    for path in sorted(place.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        found[path.stem] = first.lstrip("# ").strip() if first.startswith("#") else ""
    return found


def read_choice(group: str, name: str) -> dict[str, Any]:
    """The keys of one choice, `_target_` among them.

    Raises:
        ConfigError: there is no such choice, or its YAML is broken.
    """
    known = choices(group)
    if name not in known:
        raise ConfigError(f'{group}={name}: there is no such choice in the group "{group}".{suggest(name, known)}')
    path = conf_folder() / FOLDER.get(group, group) / f"{name}.yaml"
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or "_target_" not in values:
        raise ConfigError(f"{path} must hold a `_target_` with the dotted path of a dataclass")
    return {str(key): value for key, value in values.items()}


# ---------------------------------------------------------------- one dataclass from values


def schema_of(target: str, where: str) -> type:
    """The dataclass a `_target_` names."""
    try:
        cls = locate(target)
    except ValueError as error:
        raise ConfigError(f"{where}._target_: {error}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}._target_={target} is not a dataclass of settings")
    return cls


def build(values: Mapping[str, Any], where: str) -> Any:
    """The settings object of a choice. `where` is what errors call it, e.g. "method.aisp"."""
    values = dict(values)
    cls = schema_of(values.pop("_target_"), where)
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    fields = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}.{key}: there is no such key.{suggest(key, known)}")
        fields[key] = convert(value, hints[key], f"{where}.{key}")
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in fields]
    if missing:
        raise ConfigError(f"{where}.{missing[0]} must be set: {comments(cls).get(missing[0], 'it has no default')}")
    try:
        return cls(**fields)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _required(field: dataclasses.Field) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def convert(value: Any, hint: Any, where: str) -> Any:
    """A YAML value as the type of a field.

    Raises:
        ConfigError: the value is of another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(convert(item, args[0], where) for item in value)
        if len(args) != len(value):
            raise ConfigError(f"{where} takes {len(args)} values, and {len(value)} were given: {list(value)}")
        return tuple(convert(item, arg, where) for item, arg in zip(value, args, strict=True))
    if origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(f"{where}={value}: it is one of {', '.join(map(str, args))}")
    elif origin is None and isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{where}={value!r}: it must be {_named(hint)}, and this is {_named(type(value))}")


def _convert_union(value: Any, args: Sequence[Any], where: str) -> Any:
    if value is None and type(None) in args:
        return None
    rest = [arg for arg in args if arg is not type(None)]
    for arg in rest:
        try:
            return convert(value, arg, where)
        except ConfigError:
            continue
    allowed = " or ".join(_named(arg) for arg in args)
    raise ConfigError(f"{where}={value!r}: it must be {allowed}, and this is {_named(type(value))}")


def _named(hint: Any) -> str:
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in words:
        return words[hint]
    if hint in (list, tuple) or typing.get_origin(hint) is tuple:
        return "a list such as [1,2]"
    if hint is dict or typing.get_origin(hint) in (dict, Mapping):
        return "a mapping such as {key: value}"
    return str(hint)


def comments(cls: type) -> dict[str, str]:
    """Field name -> the comment behind it in the source, base classes included. What --help shows."""
    import inspect

    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = inspect.cleandoc("\n" + inspect.getsource(base))
        except OSError:
            continue
        lines = source.split("\n")
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                line = lines[(node.end_lineno or 1) - 1]
                _, mark, comment = line[node.end_col_offset :].partition("#")
                found[node.target.id] = comment.strip() if mark else ""
    return found


# ---------------------------------------------------------------- the command line


def parse_value(text: str) -> Any:
    """The value behind `key=`: YAML where that gives a scalar or a list, the text itself otherwise."""
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        return text
    if value is None and text.strip().lower() not in ("null", "none", "~", ""):
        return text  # `#x` is a comment to YAML, a text to people
    if isinstance(value, dict) and not text.strip().startswith("{"):
        return text  # `Human: hi`
    return value


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """key=value words as a dict of raw texts, in order.

    Raises:
        ConfigError: a word is not of that form.
    """
    found: dict[str, str] = {}
    for word in arguments:
        key, mark, value = word.partition("=")
        if key.startswith("-"):
            bare = key.lstrip("-")
            raise ConfigError(f"{word}: keys are written without dashes: {bare}={value or 'value'}")
        if not mark or not key.strip():
            raise ConfigError(f"{word}: every argument is key=value, for example seed=1 or method=[aisp,best_of_n]")
        if key in found:
            raise ConfigError(f"{key} is given twice: {found[key]} and {value}")
        found[key] = value
    return found


def name_list(value: Any) -> list[str]:
    """Choice names from `aisp`, `[aisp,best_of_n]`, `aisp,best_of_n` or a YAML list."""
    if value is None:
        return []
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").split(",")
    return [str(item).strip() for item in value if str(item).strip()]


@dataclasses.dataclass
class Composed:
    """A configuration before its objects are built: top-level keys, and the keys of each chosen YAML."""

    top: dict[str, Any]
    groups: dict[str, dict[str, dict[str, Any]]]  # group -> choice name -> keys

    def tree(self) -> dict[str, Any]:
        """As `print_config=true` shows it: groups with one choice are flat, `method` and `judges` are by name."""
        shown: dict[str, Any] = {}
        for group, chosen in self.groups.items():
            shown[group] = chosen if group in MANY else next(iter(chosen.values()), None)
        return {**shown, **self.top}


def compose(defaults: Mapping[str, Any], arguments: Mapping[str, str]) -> Composed:
    """Defaults (conf/eval.yaml, an experiment), then the choices of the command line, then its overrides."""
    top = {key: value for key, value in defaults.items() if key not in GROUPS and key != "set"}
    picked = {group: name_list(defaults.get(group)) for group in GROUPS}
    overrides: dict[str, Any] = dict(defaults.get("set") or {})
    for key, text in arguments.items():
        if key in GROUPS:
            picked[key] = name_list(parse_value(text) if key in MANY else text)
        elif "." in key:
            overrides[key] = text
        elif key in top:
            top[key] = parse_value(text)
        else:
            raise ConfigError(f"{key}={text}: there is no such key.{suggest(key, [*GROUPS, *top])}")
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for group, names in picked.items():
        if group not in MANY and len(names) != 1:
            raise ConfigError(f"{group}={','.join(names)}: choose exactly one.{suggest('', choices(group))}")
        groups[group] = {name: read_choice(group, name) for name in names}
    if not groups["method"]:
        raise ConfigError(f"method=[]: choose at least one.{suggest('', choices('method'))}")
    usual = [name_list(values.pop("_judges_", None)) for values in groups["reward"].values()]
    if defaults.get("judges") is None and "judges" not in arguments:  # a reward model may name its usual judges
        groups["judges"] = {name: read_choice("judges", name) for names in usual for name in names}
    for values in groups["judges"].values():
        values.pop("_judges_", None)
    for key, value in overrides.items():
        override(groups, key, value)
    return Composed(top, groups)


def override(groups: dict[str, dict[str, dict[str, Any]]], key: str, value: Any) -> None:
    """Set `group.key` or, in groups of many, `group.name.key` (`group.key` sets it in every choice that has it)."""
    group, *path = key.split(".")
    if group not in groups:
        raise ConfigError(f'{key}: there is no group "{group}".{suggest(group, GROUPS)}')
    chosen = groups[group]
    if group in MANY and path[0] in chosen and len(path) > 1:
        targets, path = [path[0]], path[1:]
    elif group in MANY and len(path) > 1:
        raise ConfigError(f'{key}: "{path[0]}" is not among the chosen ones of {group}.{suggest(path[0], chosen)}')
    else:
        targets = list(chosen)
        if group in MANY:
            targets = [name for name in targets if path[0] in _hints(chosen[name], f"{group}.{name}")] or targets
    for name in targets:
        where = f"{group}.{name}" if group in MANY else group
        hints = _hints(chosen[name], where)
        if path[0] not in hints:
            raise ConfigError(f"{where}.{path[0]}: there is no such key.{suggest(path[0], hints)}")
        parsed = value
        if isinstance(value, str):
            parsed = _plain_text(value) if _wants_text(hints[path[0]]) else parse_value(value)
        if len(path) == 1:
            chosen[name][path[0]] = parsed
        else:
            held = chosen[name].get(path[0])
            if held is not None and not isinstance(held, Mapping):
                raise ConfigError(f"{key}: {where}.{path[0]} is {held!r} and has no keys; set {where}.{path[0]}=...")
            inner = dict(held or {})
            inner[".".join(path[1:])] = parse_value(value) if isinstance(value, str) else value
            chosen[name][path[0]] = inner


def _hints(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    cls = schema_of(values["_target_"], where)
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _wants_text(hint: Any) -> bool:
    args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return hint is str or (typing.get_origin(hint) in (typing.Union, types.UnionType) and args == [str])


def _plain_text(text: str) -> str | None:
    """A text as typed; null is None, and one pair of quotes is taken off."""
    if text in ("null", "None"):
        return None
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
