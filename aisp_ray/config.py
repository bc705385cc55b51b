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
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aisp_ray.errors import RefusedError, encodable

MANY = ("method", "judges", "metric", "tracker")  # groups of which several may be chosen; their keys are group.NAME.key
CHOSEN_BY = {"metric": "metrics", "tracker": "trackers"}  # group -> the key that chooses, where it has another name
OPTIONAL = ("heldout",)  # groups of one choice that may be null
_SUFFIXES = (".yaml", ".yml")  # of a choice that is a file of one's own
FOLDER = {"judges": "reward", "heldout": "data"}  # group -> folder of conf/, where it has another name


class ConfigError(RefusedError):
    """One clear sentence for whoever typed the command or wrote the YAML."""


def locate(path: str) -> Any:
    """The object at "package.module:name" or "package.module.name"; the current folder counts as importable.

    Raises:
        ValueError: the path does not lead to an object, or its module raises when imported; says which part failed.
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name:
        raise ValueError(f"{path!r} is not a path to an object; write it as package.module:name")
    importable(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path!r}: there is no module {error.name!r} on the Python path") from error
    except Exception as error:
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise ValueError(f"{path!r}: module {module_name!r} has no {name!r}") from error


def importable(folder: str) -> None:
    """Modules in this folder can be imported from now on; what could be imported before stays first."""
    if folder not in sys.path and not (folder == os.getcwd() and "" in sys.path):
        sys.path.append(folder)  # a console script does not have the current one


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


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars, as people mean them: `010` is ten, `1:30` and `no` are texts. A key may be there once."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for at, key in enumerate(keys) if key in keys[:at]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_NUMBER = (
    r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
for _tag, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", _NUMBER, "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))
_Loader.add_constructor("tag:yaml.org,2002:float", yaml.SafeLoader.construct_yaml_float)


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if encodable(text) != text:
        raise ValueError(f"{text!a} holds half of a surrogate pair, which no file can hold")
    return text


_Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)


def load_yaml(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError or ValueError where it is none."""
    return yaml.load(text, Loader=_Loader)


def choices(group: str, folder: Path | None = None) -> dict[str, str]:
    """The YAML files of a group, name -> one-line description (the file's first comment)."""
    place = (folder or conf_folder()) / FOLDER.get(group, group)
    return {path.stem: _first_comment(path) for path in sorted(place.glob("*.yaml"))}


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def choice_name(choice: str) -> str:
    """What a choice is called in keys, rows and tables: `folder/mine.yaml` is `mine`."""
    return Path(choice).stem if choice.endswith(_SUFFIXES) else choice


def choice_file(group: str, choice: str) -> Path:
    """The YAML of a choice: a name in the group's folder of conf/, or a path that ends in .yaml.

    Raises:
        ConfigError: there is none.
    """
    if choice.endswith(_SUFFIXES):
        path = Path(choice).expanduser()
        if not path.is_file():
            raise ConfigError(f"{group}={choice}: there is no such file")
        return path
    known = choices(group)
    if choice not in known:
        raise ConfigError(f'{group}={choice}: there is no such choice in the group "{group}".{suggest(choice, known)}')
    return conf_folder() / FOLDER.get(group, group) / f"{choice}.yaml"


def about_choice(group: str, choice: str) -> str:
    """The first comment of a choice's YAML."""
    return _first_comment(choice_file(group, choice))


def read_choice(group: str, choice: str) -> dict[str, Any]:
    """The keys of one choice, `_target_` among them. Modules beside a YAML that is given by its path can be imported.

    Raises:
        ConfigError: there is no such choice, or its YAML is broken.
    """
    path = choice_file(group, choice)
    if choice.endswith(_SUFFIXES):
        importable(str(path.resolve().parent))
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
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
    """The settings object of a choice. `where` is what errors call it, e.g. "method.aisp"; "" for a command's own."""
    values = dict(values)
    cls = schema_of(values.pop("_target_"), where)
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    fields, inside = {}, f"{where}." if where else ""
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{inside}{key}: there is no such key.{suggest(key, known)}")
        fields[key] = convert(value, hints[key], f"{inside}{key}")
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in fields]
    if missing:
        raise ConfigError(f"{inside}{missing[0]} must be set: {comments(cls).get(missing[0], 'it has no default')}")
    try:
        return cls(**fields)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _required(field: dataclasses.Field) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def interpolated(value: Any, where: str) -> Any:
    """The value with `${oc.env:NAME}` and OmegaConf's other resolvers filled in; what has none comes back as it is.

    Raises:
        ConfigError: there is no such resolver, or the environment has no such variable.
    """
    if not (isinstance(value, str) and "${oc." in value):
        return value
    try:
        return OmegaConf.create({"value": value})["value"]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}={value}: {str(error).splitlines()[0]}") from error


def convert(value: Any, hint: Any, where: str) -> Any:
    """A YAML value as the type of a field, interpolations filled in.

    Raises:
        ConfigError: the value is of another type.
    """
    value = interpolated(value, where)
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
    if len(rest) == 1 and typing.get_origin(rest[0]) is tuple and isinstance(value, list | tuple):
        return convert(value, rest[0], where)  # says which item is wrong
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
    if typing.get_origin(hint) is tuple:
        return "a list of texts such as [a, b]" if typing.get_args(hint)[0] is str else "a list such as [1,2]"
    if hint in (list, tuple):
        return "a list"
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
        value = load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if value is None and text.strip().lower() not in ("null", "~", ""):
        return text  # `#x` is a comment to YAML, a text to people
    if isinstance(value, dict) and not text.strip().startswith("{"):
        return text  # `Human: hi`
    return _with_values(value)


def _with_values(value: Any) -> Any:
    """`{a:1}`, which is a key without a value to YAML, as {a: 1}, which is what people mean."""
    if isinstance(value, list):
        return [_with_values(item) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[Any, Any] = {}
    for key, item in value.items():
        name, mark, rest = key.partition(":") if isinstance(key, str) and item is None else (key, "", "")
        found[name] = parse_value(rest) if mark else _with_values(item)
    return found


def parse_as(text: str, hint: Any) -> Any:
    """The value behind the `key=` of a field of this type: texts are taken as typed, also in a list of them."""
    kinds = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kind = kinds[0] if is_union and len(kinds) == 1 else hint
    if kind is str:
        return _plain_text(text)
    return _texts(text) if kind == tuple[str, ...] else parse_value(text)


def _texts(text: str) -> list[str] | None:
    """`[User:, "a, b"]`, with or without its brackets, as a list of texts."""
    if text in ("null", "None"):
        return None
    inner = text.strip()
    inner = inner[1:-1] if inner.startswith("[") and inner.endswith("]") else inner
    items = re.findall(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,]*)\s*(?:,|$)""", inner)
    items = [item.strip() for item in (items[:-1] if items[-1:] == [""] else items)]
    return [str(load_yaml(item)) if item[:1] in ("'", '"') and item[-1:] == item[:1] else item for item in items]


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


def compose(picked: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> choice name -> keys, before any object is built.

    picked: the names chosen in each group; None in `judges`: those that the reward model's YAML names.
    overrides: values by group.key or group.name.key; texts are parsed as the key's type says.

    Raises:
        ConfigError: one sentence.
    """
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    usual: list[str] = []
    for group, value in picked.items():
        names = name_list(value)
        if group not in MANY and len(names) != 1 and not (group in OPTIONAL and not names):
            raise ConfigError(f"{group}={','.join(names)}: choose exactly one.{suggest('', choices(group))}")
        groups[group] = read_choices(group, names)
        for values in groups[group].values():  # for the evaluation only, where it is a reward model
            usual += [*name_list(values.pop("_judges_", None))] if group == "reward" else []
            values.pop("_judges_", None)
    if groups.get("method") == {}:
        raise ConfigError(f"method=[]: choose at least one.{suggest('', choices('method'))}")
    if "judges" in groups and picked["judges"] is None:
        groups["judges"] = read_choices("judges", usual)
        for values in groups["judges"].values():
            values.pop("_judges_", None)
    for key, value in overrides.items():
        override(groups, key, value)
    return groups


def read_choices(group: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Choice name -> keys. Raises ConfigError as `read_choice`, and where two files would have one name."""
    found: dict[str, dict[str, Any]] = {}
    for choice in names:
        name = choice_name(choice)
        if name in found and name != choice:
            raise ConfigError(f"{group}={choice}: {name} is chosen already; rename the file: its rows have its name")
        found[name] = read_choice(group, choice)
    return found


def override(groups: dict[str, dict[str, dict[str, Any]]], key: str, value: Any) -> None:
    """Set `group.key` or, in groups of many, `group.name.key` (`group.key` sets it in every choice that has it)."""
    group, *path = key.split(".")
    if group not in groups:
        raise ConfigError(f'{key}: there is no group "{group}".{suggest(group, groups)}')
    chosen = groups[group]
    if not chosen:
        raise ConfigError(f"{key}={value} has no effect: {group} is null")
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
            parsed = parse_as(value, hints[path[0]])
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


def _plain_text(text: str) -> str | None:
    """A text as typed; null is None, and one pair of quotes is taken off."""
    if text in ("null", "None"):
        return None
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
