"""The command `python jobs/eval.py` (installed: `aisp-eval`): read, check, run, show the table."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aisp_ray import __version__, config
from aisp_ray.commands import base
from aisp_ray.commands.base import Command, Composed, as_typed, for_a_reader, run_settings, tell
from aisp_ray.config import ConfigError
from aisp_ray.errors import OK, SOME_ERRORS, refuse
from aisp_ray.methods.base import TOTAL, Method, check_budgets, fit_budgets, read_budget, total_of
from aisp_ray.plan import Plan, absolute, describe, draws_of
from aisp_ray.policy.base import PolicySpec
from aisp_ray.policy.causal_lm import CausalLM

_ABOUT = """\
python jobs/eval.py [key=value ...]

Draws responses of a policy under one or more methods, scores them with a reward model, writes one row per prompt and
method as Parquet and ends with a table. Alone it runs the embedded demo. The same command resumes where it stopped.

  python jobs/eval.py                                             the demo
  python jobs/eval.py method=[aisp,best_of_n] method.aisp.sigma=0.5 limit=16 out=outputs/sigma05
  python jobs/eval.py policy=llama3_8b reward=ultrarm_13b data=shp out=s3://bucket/run1
  python jobs/eval.py experiment=NAME                             a row of a paper's table
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Keys of an evaluation, beside its groups."""

    seed: int = 0  # names all randomness of the run
    limit: int | None = None  # use only the first so many prompts; null uses all
    out: str = "outputs/demo"  # folder or URI (s3://, gs://) of the results; the same command resumes where it stopped
    baseline: str = "best_of_n"  # the method that differences in the table are against; a typed one must be chosen
    budget: Any = None  # sets kappa: 256 (samples per prompt), generated_tokens:16384; total:8192: over all prompts
    allow_unequal_budgets: bool = False  # compare methods although they may cost differently
    train: str = "never"  # missing: first train the value functions that are not there, in this job; or never
    pilot: int | None = None  # with dry_run=true: run so many random prompts to tell hours and money; their rows stay
    reward_check: str | None = None  # with dry_run=true: pairs (prompt, chosen, rejected) to test the reward model on
    reward_check_least: float = 0.5  # refuse a reward model that orders a smaller share of these pairs rightly
    report: bool = True  # write <out>/report/ at the end

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.pilot is not None and self.pilot < 8:
            raise ValueError(f"pilot={self.pilot}: give at least 8 prompts, or null for none")
        if not 0 <= self.reward_check_least <= 1:
            raise ValueError(f"reward_check_least={self.reward_check_least}: it is a share of pairs in [0, 1]")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: give at least 1, or null for all prompts")
        if self.train not in ("never", "missing"):
            raise ValueError(f"train={self.train}: it is never, or missing")


def check_seed(seed: int) -> None:
    """Raises ValueError where the seed does not fit into its column of 64 bits."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed={seed}: give a whole number of at most 64 bits")


_OF_THE_EVALUATION = ("split", "sample", "in_flight", "particles")  # keys that a training does not take over

COMMAND = Command(
    name="eval",
    about=_ABOUT,
    settings=EvalSettings,
    groups=("method", "policy", "reward", "judges", "data", "run"),
    flags=("dry_run", "print_config"),
    experiments=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return base.main(COMMAND, carry_out, argv)


def carry_out(words: Sequence[str]) -> int:
    flags, composed = read_command(words)
    if base.config_shown(flags, composed):
        return OK
    plan = planned(composed, flags["dry_run"])
    steps = first_steps(plan, composed)
    if flags["dry_run"]:
        return dry_run(plan, steps, composed.settings)
    return train(steps) or evaluate(plan, composed.settings.baseline, composed.settings.report)


def planned(composed: Composed, dry: bool = False) -> Plan:
    """What is to be run, checked and pinned. dry: what must be run before is no problem yet.

    Raises:
        RefusedError: a line per problem.
    """
    settings: EvalSettings = composed.settings

    def problems(plan: Plan) -> list[str]:
        found = check(plan, settings.allow_unequal_budgets, settings.budget)
        found += pilot_problems(settings, plan, dry)
        later = settings.pilot is None and (dry or settings.train == "missing")
        steps = [] if later else first_steps(plan, composed)
        return found + [f"method.{name} first needs: {step}  (or train=missing)" for name, step in steps]

    return base.prepared(composed, make_plan, problems, pin)


def pilot_problems(settings: EvalSettings, plan: Plan, dry: bool) -> list[str]:
    given = [name for name in ("pilot", "reward_check") if getattr(settings, name) is not None]
    found = [] if dry else [f"{name} has no effect without dry_run=true" for name in given]
    if settings.pilot is not None and plan.total is not None:
        found.append("pilot and budget=total exclude each other: what a prompt gets depends on all of them")
    return found


def read_command(words: Sequence[str]) -> tuple[dict[str, bool], Composed]:
    """The flags, and the composed configuration."""
    flags, composed = base.read(COMMAND, words)
    # one that is typed must be there; a default may be left without rows, and the table says so
    known = composed.groups["method"] if "baseline" in composed.typed else config.choices("method")
    baseline = composed.settings.baseline
    if baseline not in known:
        raise ConfigError(f"baseline={baseline}: it is not among the methods.{config.suggest(baseline, known)}")
    return flags, composed


def make_plan(composed: Composed) -> Plan:
    """Build every settings object. Raises ConfigError with one sentence for the first that is wrong."""
    settings: EvalSettings = composed.settings
    built = {group: composed.built(group) for group in ("method", "judges")}
    parts = {group: composed.one(group) for group in ("policy", "reward", "data")}
    for name, method in built["method"].items():
        if not isinstance(method, Method):
            raise ConfigError(f"method.{name}: {type(method).__name__} does not inherit aisp_ray.methods.base.Method")
    methods = fitted(built["method"], settings.budget, parts["policy"])
    total = total_of(settings.budget)
    shared = {} if total is None else {"total": total, "limit": settings.limit}  # who is there decides who gets what
    return Plan(
        methods=methods,
        judges=built["judges"],
        **parts,
        run=run_settings(composed),
        seed=settings.seed,
        limit=settings.limit,
        out=absolute(settings.out),
        total=total,
        config=composed.tree(),
        fingerprint={
            "version": __version__,
            "seed": settings.seed,
            "method": {name: describe(method) for name, method in methods.items()},
            "judges": {name: describe(judge) for name, judge in built["judges"].items()},
            **{name: describe(part) for name, part in parts.items()},
            **shared,
        },
    )


def check(plan: Plan, allow_unequal: bool, budget: Any = None) -> list[str]:
    """What is wrong with the plan and can be said before anything loads, a sentence each."""
    found = [*plan.policy.check(), *plan.reward.check(), *plan.data.check()]
    for name, judge in plan.judges.items():
        found += judge.check(f"judges.{name}")
    for method in plan.methods.values():
        found += method.check()
    found += [*plan.policy.refusals(plan.methods), *too_long(plan.methods, plan.policy)]
    unit = "samples" if budget is None else read_budget(budget)[0]
    if unit == TOTAL:
        return found + too_small(plan)
    unequal = check_budgets(plan.methods, unit, most_new_tokens(plan.policy))
    if unequal and not allow_unequal:
        found.append(f"{unequal}; set them equal with budget=256, or allow_unequal_budgets=true")
    return found


def too_small(plan: Plan) -> list[str]:
    """A sentence for each method whose first iterations alone cost more than the budget over all prompts."""
    count, total = plan.limit or 1, plan.total or 0
    first = {name: count * draws_of(method) for name, method in plan.methods.items()}
    return [
        f"budget=total:{total} does not cover a first iteration of {name} for {count} prompts, {cost} samples; raise "
        f"it, or lower limit or method.{name}.n"
        for name, cost in first.items()
        if total < cost
    ]


def first_steps(plan: Plan, composed: Composed) -> list[tuple[str, str]]:
    """What must be run before: the name of a method, and the whole command."""
    choices = {group: config.name_list(composed.chosen[group])[0] for group in ("policy", "reward", "data")}
    if any(field.name == "split" for field in dataclasses.fields(plan.data)):
        choices["data.split"] = "train"
    for group in (*choices, "run"):
        chosen = config.name_list(composed.chosen.get(group))
        for choice, values in zip(chosen, composed.groups.get(group, {}).values(), strict=True):
            usual = config.read_choice(group, choice)
            changed = {key: value for key, value in values.items() if usual.get(key, usual) != value}
            choices |= {
                f"{group}.{key}": as_typed(value) for key, value in changed.items() if key not in _OF_THE_EVALUATION
            }
    return [(name, step) for name, method in plan.methods.items() for step in method.first_steps(choices)]


def train(steps: Sequence[tuple[str, str]]) -> int:
    """Carry out the first steps, each once; the exit code of the first that fails."""
    from aisp_ray.commands import train_value

    for step in dict.fromkeys(step for _, step in steps):
        print(f"first: {step}", file=sys.stderr)
        _, script, *words = shlex.split(step)
        assert script == "jobs/train_value.py", step
        if code := train_value.carry_out(words):
            return code
    return OK


def too_long(methods: Mapping[str, Method], policy: PolicySpec) -> list[str]:
    """A sentence for each method that asks for longer responses than the policy gives."""
    most = policy.max_new_tokens
    wanted = {name: method.max_new_tokens for name, method in methods.items()}
    return [
        f"method.{name}.max_new_tokens={count} is above policy.max_new_tokens={most}; lower it, or raise the policy's"
        for name, count in wanted.items()
        if count is not None and most is not None and count > most
    ]


def fitted(methods: Mapping[str, Any], budget: Any, policy: PolicySpec) -> dict[str, Any]:
    """The methods at the budget that the command line gives, if it does."""
    try:
        return fit_budgets(methods, budget, most_new_tokens(policy))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def most_new_tokens(policy: PolicySpec) -> int:
    return int(policy.max_new_tokens or CausalLM.max_new_tokens)


def pin(plan: Plan) -> Plan:
    """The plan with the commits of all that comes from the hub written in: what runs is what the manifest says."""
    policy, reward = plan.policy.pinned(), plan.reward.pinned()
    judges = {name: judge.pinned(f"judges.{name}") for name, judge in plan.judges.items()}
    data = plan.data.pinned()
    named = {"policy": describe(policy), "reward": describe(reward), "data": describe(data)}
    fingerprint = {**plan.fingerprint, **named, "judges": {name: describe(judge) for name, judge in judges.items()}}
    return dataclasses.replace(plan, policy=policy, reward=reward, data=data, judges=judges, fingerprint=fingerprint)


def dry_run(plan: Plan, steps: Sequence[tuple[str, str]], settings: EvalSettings) -> int:
    """Say what would run, what must be run before, and what it would cost; check the cluster against what is asked.

    Runs a pilot and tests the reward model where the settings ask for it.
    """
    from aisp_ray.cluster.placement import ask_in_words
    from aisp_ray.files import inside
    from aisp_ray.pipeline import preflight, run
    from aisp_ray.pipeline.reward_check import check_reward

    prompts = "all prompts" if plan.limit is None else f"{plan.limit} prompts"
    with for_a_reader():
        for name, step in steps:
            tell(f"first, for {name}: {step}")
        tell(f"would run {', '.join(plan.methods)} on {prompts} of {plan.data.dataset}, seed {plan.seed}")
        for name, method in plan.methods.items():
            tell(f"  {name}: {_cost_of([method], plan)} in {method.num_iterations} iterations")
            for remark in method.remarks(most_new_tokens(plan.policy)):
                tell(f"    {remark}")
        tell(f"  {_total_cost(plan)}")
        for role, part in (("policy", plan.policy), ("reward", plan.reward), *plan.judges.items()):
            low, high = part.actors
            actors = f"{low} to {high} actors" if high > low else f"{low} actor{'s' * (low != 1)}"
            tell(f"  {role}: {actors} of {ask_in_words(part)}")
        tell(f"  rows: {inside(plan.out, 'rows')}  (configuration {plan.config_hash})")
    if problems := preflight(plan, tell):
        return refuse(problems)
    if settings.reward_check is not None:
        tell(f"  reward: {check_reward(plan, settings.reward_check, settings.reward_check_least).says()}")
    if settings.pilot is not None and (code := run(plan, settings.pilot)) not in (OK, SOME_ERRORS):
        return code
    with for_a_reader():
        for line in _time_and_money(plan):
            tell(f"  {line}")
    return OK


def _cost_of(methods: Sequence[Method], plan: Plan) -> str:
    samples, tokens = _most(methods, plan)
    return f"{samples:,} samples and at most {tokens:,} tokens per prompt"


def _most(methods: Sequence[Method], plan: Plan) -> tuple[int, int]:
    """Samples and tokens that one prompt costs at most."""
    longest = most_new_tokens(plan.policy)
    return sum(m.num_samples for m in methods), sum(m.max_generated_tokens(longest) for m in methods)


def _total_cost(plan: Plan) -> str:
    """What all of it costs at most."""
    methods = list(plan.methods.values())
    if plan.total is not None:
        return f"together: at most {plan.total * len(methods):,} samples over all prompts (budget=total)"
    if plan.limit is None:
        return f"together: {_cost_of(methods, plan)}; the data say how many prompts there are"
    samples, tokens = (each * plan.limit for each in _most(methods, plan))
    return f"together: {samples:,} samples and at most {tokens:,} tokens for {plan.limit} prompts"


def _time_and_money(plan: Plan) -> list[str]:
    """How long it takes, where a run with these models has been timed."""
    from aisp_ray.pipeline import estimate

    if plan.total is not None:
        return []  # what one prompt gets depends on all of them
    if lines := estimate.lines_of(plan):
        return lines
    rate = estimate.earlier_rate(plan.out, describe(plan.policy), describe(plan.reward))
    if rate is None:
        return ["time: unknown, as no run with this policy and reward lies beside this output; pilot=16 measures it"]
    what = "per prompt" if plan.limit is None else f"for {plan.limit} prompts"
    tokens = _most(list(plan.methods.values()), plan)[1] * (plan.limit or 1)
    return [f"time: {rate.says(tokens, what)}"]


def evaluate(plan: Plan, baseline: str, report: bool) -> int:
    """Run the plan, then print the table and where the files are."""
    from aisp_ray.pipeline import run

    code = run(plan)
    if code in (OK, SOME_ERRORS):
        with for_a_reader():
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
        text = report_text(report)
        if write:
            write_report(report)
    except Exception as error:
        print(f"report   not written ({error}); try python jobs/report.py out={out}", file=sys.stderr)
        return
    print(text)  # last: a reader that went away must not cost the report
    if write:
        print(f"report   {report.page}")
