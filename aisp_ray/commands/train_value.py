"""Train a value function of pre-logits: responses from the policy, labels from the reward, one small network.

Prompts are read as for an evaluation; the policy (its own Ray actors, or this process with local=true) draws responses
and hands back their base pre-logits; the reward scores them; `engine.value.fit` does the rest. The file it writes is
what method=re_control reads; its header holds the held-out curve and the whole cost, because a method that learnt
before the test has spent that too. Kong et al., 2024, arXiv 2406.05954.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from aisp_ray import config
from aisp_ray.config import ConfigError
from aisp_ray.pipeline.value_training import ValuePlan, ValueTraining, train
from aisp_ray.plan import in_ray_job

GROUPS = ("policy", "reward", "data", "run")
_USAGE = """\
python jobs/train_value.py [key=value ...]

Draws responses of a policy, scores them, and trains the value function that method=re_control follows.

  python jobs/train_value.py                                      for the demo models, under a minute
  python jobs/train_value.py policy=llama3_8b reward=ultrarm_13b data=shp data.split=train out=/abs/value.safetensors
  ray job submit --working-dir . -- python jobs/train_value.py out=/abs/value.safetensors
  python jobs/eval.py method=re_control method.re_control.value=/abs/value.safetensors

policy=, reward=, data=, run=: as for jobs/eval.py, with their keys. Other keys (default, meaning):
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 the command is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "help"} & set(words):
        print(help_text())
        return 0
    try:
        parts, settings = read_command(words)
        problems = [*parts["policy"].check(), *parts["reward"].check(), *parts["data"].check(), *check_out(settings)]
        if problems:
            raise ConfigError("\n".join(problems))
    except ConfigError as error:
        for line in str(error).split("\n"):
            print(f"error: {line}", file=sys.stderr)
        return 2
    return train(ValuePlan(**parts, settings=settings))


def read_command(words: Sequence[str]) -> tuple[dict[str, Any], ValueTraining]:
    """The built parts by group, and the settings."""
    picked = config_defaults()
    own: dict[str, Any] = {}
    overrides: dict[str, str] = {}
    known = {field.name for field in dataclasses.fields(ValueTraining)}
    for key, text in config.parse_arguments(words).items():
        if key in GROUPS:
            picked[key] = text
        elif "." in key:
            overrides[key] = text
        elif key in known:
            own[key] = text if key in ("out", "terminal") else config.parse_value(text)
        else:
            raise ConfigError(f"{key}={text}: there is no such key.{config.suggest(key, [*GROUPS, *known])}")
    groups = {group: {name: config.read_choice(group, name)} for group, name in picked.items()}
    for chosen in groups.values():
        for values in chosen.values():
            values.pop("_judges_", None)
    for key, value in overrides.items():
        config.override(groups, key, value)
    parts = {group: config.build(next(iter(chosen.values())), group) for group, chosen in groups.items()}
    target = f"{ValueTraining.__module__}.{ValueTraining.__qualname__}"
    return parts, config.build({"_target_": target, **own}, "train_value")


def config_defaults() -> dict[str, str]:
    import yaml

    return yaml.safe_load((config.conf_folder() / "train_value.yaml").read_text(encoding="utf-8"))


def check_out(settings: ValueTraining) -> list[str]:
    if not settings.out.endswith(".safetensors"):
        return [f"out={settings.out}: the file's name must end in .safetensors"]
    if in_ray_job() and not settings.out.startswith("/"):
        return [
            f"out={settings.out} is relative, and the working folder of a Ray job is thrown away; give an absolute path"
        ]
    return []


def help_text() -> str:
    lines = [_USAGE.rstrip()]
    notes = config.comments(ValueTraining)
    for field in dataclasses.fields(ValueTraining):
        lines.append(f"  {field.name:<14} {field.default!s:<26} {notes[field.name]}")
    return "\n".join(lines)
