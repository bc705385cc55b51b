"""The command `python jobs/eval.py` (installed: `aisp-eval`): read, check, run, show the table.

Exit codes: 0 all rows are ok, 1 failed, 2 the command or configuration is wrong, 3 some rows are errors, 75 try again
(no machines were left), 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aisp_ray import __version__, config
from aisp_ray.config import Composed, ConfigError
from aisp_ray.methods.base import Method, check_budgets, fit_budgets, read_budget
from aisp_ray.plan import Plan, RunSettings, absolute, describe

_FLAGS = ("dry_run", "print_config")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "help"} & set(words):
        from aisp_ray.commands.helptext import help_text

        print(help_text())
        return 0
    try:
        flags, composed = read_command(words)
        if flags["print_config"]:
            print(yaml.safe_dump(composed.tree(), sort_keys=False), end="")
            return 0
        plan = make_plan(composed)
        unequal, report = (config.convert(composed.top[key], bool, key) for key in ("allow_unequal_budgets", "report"))
        problems = check(plan, unequal, composed.top["budget"])
        steps = first_steps(plan, composed)
        if not flags["dry_run"]:
            problems += [f"method.{name} first needs: {step}" for name, step in steps]
        if problems:
            raise ConfigError("\n".join(problems))
        plan = pin(plan)
    except ConfigError as error:
        for line in str(error).split("\n"):
            print(f"error: {line}", file=sys.stderr)
        return 2
    return dry_run(plan, steps) if flags["dry_run"] else evaluate(plan, composed.top["baseline"], report)


def read_command(words: Sequence[str]) -> tuple[dict[str, bool], Composed]:
    """The flags, and the composed configuration of conf/eval.yaml, an experiment and the words."""
    arguments = config.parse_arguments(words)
    flags = {}
    for name in _FLAGS:
        value = config.parse_value(arguments.pop(name, "false"))
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value}: it is true or false")
        flags[name] = value
    defaults = read_yaml(config.conf_folder() / "eval.yaml")
    if "experiment" in arguments:
        defaults |= read_experiment(arguments.pop("experiment"), defaults)
    composed = config.compose(defaults, arguments)
    # one that is typed must be there; a default may be left without rows, and the table says so
    known = composed.groups["method"] if "baseline" in arguments else config.choices("method")
    baseline = config.convert(composed.top["baseline"], str, "baseline")
    if baseline not in known:
        raise ConfigError(f"baseline={baseline}: it is not among the methods.{config.suggest(baseline, known)}")
    return flags, composed


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def read_experiment(name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of conf/experiment/<name>.yaml: choices, top-level keys, overrides under `set`, figures as `published`."""
    known = config.choices("experiment")
    if name not in known:
        raise ConfigError(f"experiment={name}: there is no such experiment.{config.suggest(name, known)}")
    values = read_yaml(config.conf_folder() / "experiment" / f"{name}.yaml")
    for key in values:
        if key not in (*defaults, "set", "published"):
            raise ConfigError(
                f"conf/experiment/{name}.yaml: {key}: no such key.{config.suggest(key, [*defaults, 'set'])}"
            )
    return values


def make_plan(composed: Composed) -> Plan:
    """Build every settings object. Raises ConfigError with one sentence for the first that is wrong."""
    built: dict[str, dict[str, Any]] = {}
    for group, chosen in composed.groups.items():
        many = group in config.MANY
        built[group] = {
            name: config.build(values, f"{group}.{name}" if many else group) for name, values in chosen.items()
        }
    top = composed.top
    seed = read_seed(top["seed"])
    limit = config.convert(top["limit"], int | None, "limit")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: give at least 1, or null for all prompts")
    out = config.convert(top["out"], str, "out")
    (policy,), (reward,) = built["policy"].values(), built["reward"].values()
    (data,), (run,) = built["data"].values(), built["run"].values()
    if not isinstance(run, RunSettings):
        raise ConfigError(f"run: {type(run).__name__} is not a RunSettings")
    for name, method in built["method"].items():
        if not isinstance(method, Method):
            raise ConfigError(f"method.{name}: {type(method).__name__} does not inherit aisp_ray.methods.base.Method")
    built["method"] = fitted(built["method"], top["budget"], policy)
    parts = {"policy": policy, "reward": reward, "data": data}
    deciding = {
        "version": __version__,
        "seed": seed,
        "method": {name: describe(method) for name, method in built["method"].items()},
        "judges": {name: describe(judge) for name, judge in built["judges"].items()},
        **{name: describe(part) for name, part in parts.items()},
    }
    return Plan(
        methods=built["method"],
        policy=policy,
        reward=reward,
        judges=built["judges"],
        data=data,
        run=run,
        seed=seed,
        limit=limit,
        out=absolute(out),
        config=composed.tree(),
        fingerprint=deciding,
    )


def read_seed(value: Any) -> int:
    """The run's seed, which is a column of 64 bits."""
    seed = int(config.convert(value, int, "seed"))
    if not -(2**63) <= seed < 2**63:
        raise ConfigError(f"seed={seed}: give a whole number of at most 64 bits")
    return seed


def check(plan: Plan, allow_unequal: bool, budget: Any = None) -> list[str]:
    """What is wrong with the plan and can be said before anything loads, a sentence each."""
    found = [*plan.policy.check(), *plan.reward.check(), *plan.data.check()]
    for name, judge in plan.judges.items():
        found += judge.check(f"judges.{name}")
    for method in plan.methods.values():
        found += method.check()
    found += too_long(plan.methods, plan.policy)
    unit = "samples" if budget is None else read_budget(budget)[0]
    unequal = check_budgets(plan.methods, unit, most_new_tokens(plan.policy))
    if unequal and not allow_unequal:
        found.append(f"{unequal}; set them equal with budget=256, or allow_unequal_budgets=true")
    return found


def first_steps(plan: Plan, composed: Composed) -> list[tuple[str, str]]:
    """What must be run before: the name of a method, and the whole command."""
    choices = {group: next(iter(composed.groups[group])) for group in ("policy", "reward", "data")}
    if any(field.name == "split" for field in dataclasses.fields(plan.data)):
        choices["data.split"] = "train"
    return [(name, step) for name, method in plan.methods.items() for step in method.first_steps(choices)]


def too_long(methods: Mapping[str, Method], policy: Any) -> list[str]:
    """A sentence for each method that asks for longer responses than the policy gives."""
    most = getattr(policy, "max_new_tokens", None)
    wanted = {name: method.max_new_tokens for name, method in methods.items()}
    return [
        f"method.{name}.max_new_tokens={count} is above policy.max_new_tokens={most}; lower it, or raise the policy's"
        for name, count in wanted.items()
        if count is not None and most is not None and count > most
    ]


def fitted(methods: Mapping[str, Any], budget: Any, policy: Any) -> dict[str, Any]:
    """The methods at the budget that the command line gives, if it does."""
    try:
        return fit_budgets(methods, budget, most_new_tokens(policy))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def most_new_tokens(policy: Any) -> int:
    return int(getattr(policy, "max_new_tokens", None) or 128)


def pin(plan: Plan) -> Plan:
    """The plan with the commits of all that comes from the hub written in: what runs is what the manifest says."""
    policy, reward = plan.policy.pinned(), plan.reward.pinned()
    judges = {name: judge.pinned(f"judges.{name}") for name, judge in plan.judges.items()}
    data = plan.data.pinned()
    named = {"policy": describe(policy), "reward": describe(reward), "data": describe(data)}
    fingerprint = {**plan.fingerprint, **named, "judges": {name: describe(judge) for name, judge in judges.items()}}
    return dataclasses.replace(plan, policy=policy, reward=reward, data=data, judges=judges, fingerprint=fingerprint)


def dry_run(plan: Plan, steps: Sequence[tuple[str, str]] = ()) -> int:
    """Say what would run, what must be run before, and what it would cost; check the cluster against what is asked."""
    from aisp_ray.files import inside
    from aisp_ray.pipeline import preflight

    prompts = "all prompts" if plan.limit is None else f"{plan.limit} prompts"
    for name, step in steps:
        print(f"first, for {name}: {step}")
    print(f"would run {', '.join(plan.methods)} on {prompts} of {type(plan.data).__name__}, seed {plan.seed}")
    for name, method in plan.methods.items():
        total = "" if plan.limit is None else f", {method.num_samples * plan.limit:,} in all"
        print(f"  {name}: {method.num_samples:,} samples a prompt in {method.num_iterations} iterations{total}")
        for remark in method.remarks(most_new_tokens(plan.policy)):
            print(f"    {remark}")
    for role, part in (("policy", plan.policy), ("reward", plan.reward), *plan.judges.items()):
        low, high = part.actors
        print(f"  {role}: {low} to {high} actors of {part.num_gpus:g} GPUs")
    print(f"  rows: {inside(plan.out, 'rows')}  (configuration {plan.config_hash})")
    problems = preflight(plan)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return 2 if problems else 0


def evaluate(plan: Plan, baseline: str, report: bool) -> int:
    """Run the plan, then print the table and where the files are."""
    from aisp_ray.pipeline import run

    code = run(plan)
    if code in (0, 3):
        show(plan, baseline, report)
    return code


def show(plan: Plan, baseline: str, report: bool) -> None:
    """Print the tables and what to know before quoting them, and where the files are; write the report if asked."""
    from aisp_ray.files import inside

    print()
    show_report(plan.out, baseline, report)
    print(f"rows     {inside(plan.out, 'rows')}\nsummary  {inside(plan.out, 'summary.json')}")


def show_report(out: str, baseline: str, write: bool) -> None:
    """Print what an output shows, and write its report. Where that fails the run does not: its rows are there."""
    from aisp_ray.report.write import read_report, report_text, write_report

    try:
        report = read_report(out, baseline=baseline)
        print(report_text(report))
        if write:
            write_report(report)
    except Exception as error:
        print(f"report   not written ({error}); try python jobs/report.py out={out}", file=sys.stderr)
    else:
        print(f"report   {report.page}" if write else "", end="\n" if write else "")
