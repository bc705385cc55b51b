"""What --help prints: groups, their choices, every key with its meaning and default."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from aisp_ray import config

_USAGE = """\
python jobs/eval.py [key=value ...]

Draws responses of a policy under one or more methods, scores them with a reward model, writes one row per prompt and
method as Parquet and ends with a table. Alone it runs the embedded demo. The same command goes on where it stopped.

  python jobs/eval.py                                             the demo
  python jobs/eval.py method=[aisp,best_of_n] method.aisp.sigma=0.5 limit=16
  python jobs/eval.py policy=llama3_8b reward=ultrarm_13b data=shp out=s3://bucket/run1
  python jobs/eval.py experiment=NAME                             a row of a paper's table
  dry_run=true       check everything that can be checked before models load, and say what would run
  print_config=true  show the configuration that would be used
"""


def help_text() -> str:
    parts = [_USAGE, _top_level()]
    parts += [_choices(group) for group in (*config.GROUPS, "experiment")]
    parts += [_keys(group) for group in config.GROUPS if group != "judges"]
    return "\n".join(parts)


def _top_level() -> str:
    lines = ["Keys (default, meaning):"]
    for line in (config.conf_folder() / "eval.yaml").read_text(encoding="utf-8").split("\n"):
        key, mark, rest = line.partition(":")
        if mark and not key.startswith("#"):
            default, _, meaning = rest.partition("#")
            lines.append(_row(key, default.strip(), meaning.strip()))
    return "\n".join(lines) + "\n"


def _choices(group: str) -> str:
    name = "judges=[...]" if group == "judges" else f"{group}=[...]" if group in config.MANY else f"{group}="
    if group == "judges":
        return "judges=[...]: any choices of reward; their keys are judges.NAME.key\n"
    lines = [f"{name}"]
    for choice, text in config.choices(group).items():
        lines.append(_row(choice, "", text))
    return "\n".join(lines) + "\n"


def _keys(group: str) -> str:
    """The keys of every dataclass that a choice of the group builds."""
    users: dict[type, list[str]] = {}
    for name in config.choices(group):
        values = config.read_choice(group, name)
        users.setdefault(config.schema_of(values["_target_"], f"{group}.{name}"), []).append(name)
    prefix = f"{group}.NAME." if group in config.MANY else f"{group}."
    lines = []
    for cls, names in users.items():
        lines.append(f"{prefix}key of {', '.join(names)} ({cls.__name__}):")
        meaning = config.comments(cls)
        for field in dataclasses.fields(cls):
            if field.init:
                lines.append(_row(field.name, _default(field), meaning.get(field.name, "")))
        lines.append("")
    return "\n".join(lines)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    if field.default is dataclasses.MISSING:
        return "(must be set)"
    if field.default is None or isinstance(field.default, bool):
        return {None: "null", True: "true", False: "false"}[field.default]
    return str(list(field.default)) if isinstance(field.default, tuple) else str(field.default)


def _row(name: str, default: str, meaning: str) -> str:
    head = f"  {name:<28} {default:<16} " if default else f"  {name:<28} "
    if len(head) > 60:
        head += "\n" + " " * 48
    return (
        textwrap.fill(
            meaning,
            120,
            initial_indent=head,
            subsequent_indent=" " * 31,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if meaning and "\n" not in head
        else head + meaning
    )
