"""The command `python jobs/tune.py`: read, check, search, measure the best setting again, write it as a preset.

Exit codes: 0 all evaluations are ok, 1 failed, 2 the command or configuration is wrong, 3 some are errors, 75 try again
(no machines were left), 130 and 143 stopped by a signal. The same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from aisp_ray import __version__, config
from aisp_ray.commands.eval import read_seed, read_yaml, show_report
from aisp_ray.config import Composed, ConfigError
from aisp_ray.plan import RunSettings, absolute, describe
from aisp_ray.tune.heldout import MARK
from aisp_ray.tune.objective import make_objective, samples_of
from aisp_ray.tune.plan import TunePlan
from aisp_ray.tune.propose import SEARCHES
from aisp_ray.tune.rungs import RULES
from aisp_ray.tune.search import Rules
from aisp_ray.tune.space import Space, Workbench

_FLAGS = ("dry_run", "print_config")
_SWEEPS = ("grid", "one_at_a_time")
_TRIALS = 16  # of a search, where the command gives none


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "help"} & set(words):
        from aisp_ray.commands.tune_helptext import help_text

        print(help_text())
        return 0
    try:
        flags, command = read_command(words)
        if flags["print_config"]:
            print(yaml.safe_dump(command.tree(), sort_keys=False), end="")
            return 0
        plan = make_plan(command)
        problems = check(plan)
        if problems:
            raise ConfigError("\n".join(problems))
        plan = pin(plan)
    except ConfigError as error:
        for line in str(error).split("\n"):
            print(f"error: {line}", file=sys.stderr)
        return 2
    return dry_run(plan) if flags["dry_run"] else search(plan)


def search(plan: TunePlan) -> int:
    """Carry out the plan, then write its report."""
    from aisp_ray.tune.run import run

    code = run(plan)
    if code in (0, 3):
        show_report(plan.out, "best_of_n", plan.report)
    return code


class Command:
    """A composed command: eval's groups and top-level keys, the space and the held-out data."""

    def __init__(self, composed: Composed, tune: dict[str, dict[str, Any]], heldout: dict[str, dict[str, Any]]):
        self.composed = composed
        self.tune = tune
        self.heldout = heldout

    def tree(self) -> dict[str, Any]:
        """As `print_config=true` shows it."""
        heldout = next(iter(self.heldout.values()), None)
        return {"tune": next(iter(self.tune.values())), **self.composed.tree(), "heldout": heldout}


def read_command(words: Sequence[str]) -> tuple[dict[str, bool], Command]:
    """The flags, and the composed configuration of conf/tune.yaml and the words."""
    arguments = config.parse_arguments(words)
    flags = {}
    for name in _FLAGS:
        value = config.parse_value(arguments.pop(name, "false"))
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value}: it is true or false")
        flags[name] = value
    defaults = read_yaml(config.conf_folder() / "tune.yaml")
    tune = _split(arguments, "tune", str(defaults.pop("tune")))
    heldout = _split(arguments, "heldout", defaults.pop("heldout"), group="data")
    if "method" in arguments:
        raise ConfigError(
            f"method={arguments['method']}: the space names the method; "
            f"choose a space with tune=... or set tune.method={arguments['method']}"
        )
    known = {*defaults, "tune", "heldout"}
    for key, value in arguments.items():
        if "." not in key and key not in known:
            raise ConfigError(f"{key}={value}: there is no such key.{config.suggest(key, known)}")
    (values,) = tune.values()
    space = config.build(values, "tune")
    composed = config.compose({**defaults, "method": [space.method]}, arguments)
    return flags, Command(composed, tune, heldout)


def _split(arguments: dict[str, str], name: str, default: str | None, group: str | None = None) -> dict[str, Any]:
    """The choice behind `name=` with its overrides `name.key=` taken out of the arguments; {} where it is null."""
    chosen = arguments.pop(name, default)
    if chosen is None or chosen in ("null", "None"):
        given = [key for key in arguments if key.startswith(f"{name}.")]
        if given:
            raise ConfigError(f"{given[0]}={arguments[given[0]]} has no effect: {name} is null")
        return {}
    groups = {name: {str(chosen): config.read_choice(group or name, str(chosen))}}
    for key in [key for key in arguments if key.startswith(f"{name}.")]:
        config.override(groups, key, arguments.pop(key))
    return groups[name]


def make_plan(command: Command) -> TunePlan:
    """Build every settings object. Raises ConfigError with one sentence for the first that is wrong."""
    composed, top = command.composed, command.composed.top
    built = {
        group: {name: config.build(values, group) for name, values in composed.groups[group].items()}
        for group in ("policy", "reward", "data", "run")
    }
    (policy,), (reward,), (data,), (settings,) = (each.values() for each in built.values())
    judges = {name: config.build(values, f"judges.{name}") for name, values in composed.groups["judges"].items()}
    heldout = next((config.build(values, "heldout") for values in command.heldout.values()), None)
    ((name, values),) = command.tune.items()
    space = config.build(values, "tune")
    if not isinstance(space, Space) or not isinstance(settings, RunSettings):
        raise ConfigError("tune and run must be presets of conf/tune and conf/run")
    preset = composed.groups["method"][space.method]
    workbench = Workbench(space.typed(preset["_target_"]), preset)
    seed = read_seed(top["seed"])
    out = config.convert(top["out"], str, "out")
    search = _one_of(top, "search", SEARCHES)
    return TunePlan(
        name=name,
        workbench=workbench,
        policy=policy,
        reward=reward,
        judges=judges,
        data=data,
        heldout=heldout,
        run=settings,
        local=config.convert(top["local"], bool, "local"),
        seed=seed,
        out=absolute(out),
        search=search,
        trials=_trials(top, search),
        rules=_rules(top, search),
        heldout_limit=_count(top, "heldout_limit", least=0),
        objective=config.convert(top["objective"], str, "objective"),
        save_as=config.convert(top["save_as"], str | None, "save_as"),
        report=config.convert(top["report"], bool, "report"),
        config=command.tree(),
        fingerprint={
            "version": __version__,
            "seed": seed,
            "policy": describe(policy),
            "reward": describe(reward),
            "judges": {name: describe(judge) for name, judge in judges.items()},
            "data": describe(data),
            "heldout": describe(heldout) if heldout is not None else None,
        },
    )


def _trials(top: Mapping[str, Any], search: str) -> int | None:
    if search not in _SWEEPS:
        return _TRIALS if top["trials"] is None else _count(top, "trials")
    if top["trials"] is not None:
        raise ConfigError(f"trials={top['trials']} has no effect with search={search}, which takes every setting")
    return None


def _rules(top: Mapping[str, Any], search: str) -> Rules:
    stop = top["stop"]
    if stop is None:
        stop = "none" if search in _SWEEPS else "race"
    else:
        _one_of(top, "stop", RULES)
    return Rules(_count(top, "limit"), stop, _count(top, "first_rung"), _count(top, "batch"))


def _one_of(top: Mapping[str, Any], key: str, known: Sequence[str]) -> str:
    if top[key] not in known:
        raise ConfigError(f"{key}={top[key]}: there is no such choice.{config.suggest(str(top[key]), known)}")
    return str(top[key])


def _count(top: Mapping[str, Any], key: str, least: int = 1) -> int:
    value = config.convert(top[key], int, key)
    if value < least:
        raise ConfigError(f"{key}={value}: give at least {least}")
    return int(value)


def check(plan: TunePlan) -> list[str]:
    """What is wrong with the plan and can be said before anything loads, a sentence each."""
    found = [*plan.policy.check(), *plan.reward.check(), *plan.data.check()]
    found += plan.heldout.check() if plan.heldout is not None else []
    for name, judge in plan.judges.items():
        found += judge.check(f"judges.{name}")
    try:
        make_objective(plan.objective, list(plan.judges))
        plan.workbench.centre()
        found += _check_samples(plan)
        if plan.search == "grid":
            _any_valid(plan)
    except ValueError as error:
        found.append(str(error))
    if plan.save_as is not None:
        found += _check_save_as(plan.save_as)
    return found


def pin(plan: TunePlan) -> TunePlan:
    """The plan with the commits of all that comes from the hub and the content of the data written in.

    So a search goes on with the same models and prompts, or says what has changed.
    """
    parts = {name: getattr(plan, name).pinned() for name in ("policy", "reward", "data")}
    parts["heldout"] = plan.heldout.pinned() if plan.heldout is not None else None
    judges = {name: judge.pinned(f"judges.{name}") for name, judge in plan.judges.items()}
    named = {name: describe(part) if part is not None else None for name, part in parts.items()}
    named["judges"] = {name: describe(judge) for name, judge in judges.items()}
    for name in ("data", "heldout"):
        named[f"{name}_content"] = parts[name].fingerprint() if parts[name] is not None else None
    return dataclasses.replace(plan, **parts, judges=judges, fingerprint={**plan.fingerprint, **named})


def _any_valid(plan: TunePlan) -> None:
    """Raises the last refusal if the method refuses every setting of the grid."""
    refusal: ConfigError | None = None
    for settings in plan.workbench.space.grid():
        try:
            plan.workbench.make(settings)
            return
        except ConfigError as error:
            refusal = error
    assert refusal is not None
    raise refusal


def _check_samples(plan: TunePlan) -> list[str]:
    """Whether the preset, with which every setting is compared, has a reward after the N samples of `reward@N`."""
    samples, method = samples_of(plan.objective), plan.workbench.make({})
    one_round = method.num_samples // method.num_iterations
    if samples is None or samples >= one_round:
        return []
    return [
        f"objective={plan.objective}: there is no reward before the first round of the preset "
        f"{plan.workbench.space.method} ends, at {one_round} samples; give reward@{one_round} or more"
    ]


def _check_save_as(name: str) -> list[str]:
    from aisp_ray.tune.run import preset_path

    if not re.fullmatch(r"\w+", name):
        return [f"save_as={name}: give letters, digits and underscores; it becomes conf/method/<name>.yaml"]
    path = preset_path(name)
    if path.is_file() and MARK not in path.read_text(encoding="utf-8").split("\n", 1)[0]:
        return [f"save_as={name}: {path} is there and was not written by a search; give another name"]
    return []


def dry_run(plan: TunePlan) -> int:
    """Say what would run and what it would cost at most."""
    from aisp_ray.files import inside
    from aisp_ray.tune.propose import ListProposer, make_proposer
    from aisp_ray.tune.trial import Trial

    workbench, rules = plan.workbench, plan.rules
    count = plan.trials
    if count is None:
        centre = Trial(0, workbench.centre(), None)
        proposer = make_proposer(plan.search, workbench.space, None, plan.seed, centre)
        assert isinstance(proposer, ListProposer)
        count = len(proposer)
    most = (count + 1) * rules.num_prompts + 2 * plan.heldout_limit
    print(f"would try the preset {workbench.space.method} and {count} settings of {plan.name} by {plan.search}")
    for axis in workbench.space.axes():
        print(f"  {axis.key}: {', '.join(map(str, axis.values)) if axis.values else f'{axis.low} to {axis.high}'}")
    print(
        f"  {workbench.samples()} samples a prompt for every setting, {rules.num_prompts} tuning prompts, "
        f"stop={rules.stop}: at most {most:,} evaluations, {most * workbench.samples():,} samples"
    )
    print(f"  trials: {inside(plan.out, 'trials.parquet')}")
    return 0
