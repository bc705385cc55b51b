"""The command `python jobs/tune.py` (installed: `aisp-tune`): search, measure the best setting again, write it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from aisp_ray import __version__, config
from aisp_ray.commands import base
from aisp_ray.commands.base import Command, Composed, for_a_reader, run_settings, tell
from aisp_ray.commands.eval import check_seed, most_new_tokens, show_report
from aisp_ray.config import ConfigError
from aisp_ray.errors import OK, SOME_ERRORS
from aisp_ray.plan import absolute, describe
from aisp_ray.tune.heldout import MARK
from aisp_ray.tune.objective import KINDS, make_objective, samples_of
from aisp_ray.tune.plan import TunePlan
from aisp_ray.tune.propose import SEARCHES
from aisp_ray.tune.rungs import RULES
from aisp_ray.tune.search import Rules
from aisp_ray.tune.space import Space, Workbench

_ABOUT = f"""\
python jobs/tune.py [key=value ...]

Searches settings of one method: every setting gets the same number of samples per prompt, all see the same tuning
prompts with the same noise, bad ones stop early. The best one and the preset are then measured on held-out prompts,
and the best one is written as a preset. Alone it is a small search on the embedded demo. The same command resumes
where it stopped; another search or more trials in the same `out` pay only for what is new.

  python jobs/tune.py                                                  the demo
  python jobs/tune.py tune=aisp trials=40 limit=64 out=outputs/aisp    sigma, lambda, alpha, tau
  python jobs/tune.py tune=sigma search=grid limit=64                  a sweep with intervals
  python jobs/tune.py tune=aisp search=one_at_a_time                   each key in turn around the preset
  python jobs/tune.py tune=aisp tune.keys.sigma=[0.3,0.5,0.7]          other values
  python jobs/tune.py tune=any tune.method=misvo 'tune.keys={{step_size: {{low: 0.01, high: 1, log: true}}}}'

objective is one of {KINDS}
"""
_SWEEPS = ("grid", "one_at_a_time")
_TRIALS = 16  # of a search, where the command gives none


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Keys of a search, beside its groups."""

    search: str = "tpe"  # tpe (Optuna) | random | grid | one_at_a_time
    trials: int | None = None  # settings to try besides the preset; null: 16, and all of them in a sweep
    objective: str = "reward"  # what is maximised, a mean over prompts
    limit: int = 16  # tuning prompts: a setting that is not stopped sees them all
    stop: str | None = None  # race | halving | none: when a bad setting stops early; null: race, and none in a sweep
    first_rung: int = 4  # prompts a setting sees before it may be stopped; then twice as many, and so on
    batch: int = 4  # settings under way together, on `first_rung` prompts at first; raise it on a cluster
    heldout_limit: int = 32  # held-out prompts; 0 leaves the confirmation out
    local: bool = False  # true: models in this process instead of Ray actors, one device each
    seed: int = 0  # names all randomness of the responses and of the search
    out: str = "outputs/tune"  # folder or URI (s3://, gs://) of the results; the same command resumes where it stopped
    save_as: str | None = None  # also write the best setting as conf/method/<name>.yaml
    report: bool = True  # write <out>/report/ at the end

    def __post_init__(self) -> None:
        check_seed(self.seed)
        _one_of("search", self.search, SEARCHES)
        if self.stop is not None:
            _one_of("stop", self.stop, RULES)
        for name in ("limit", "first_rung", "batch", *(["trials"] if self.trials is not None else [])):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if self.heldout_limit < 0:
            raise ValueError(f"heldout_limit={self.heldout_limit}: give at least 0")
        if self.trials is not None and self.search in _SWEEPS:
            raise ValueError(f"trials={self.trials} has no effect with search={self.search}, which takes every setting")

    @property
    def rules(self) -> Rules:
        stop = self.stop or ("none" if self.search in _SWEEPS else "race")
        return Rules(self.limit, stop, self.first_rung, self.batch)


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{key}={value}: there is no such choice.{config.suggest(value, known)}")


COMMAND = Command(
    name="tune",
    about=_ABOUT,
    settings=TuneSettings,
    groups=("tune", "method", "policy", "reward", "judges", "data", "heldout", "run"),
    flags=("dry_run", "print_config"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return base.main(COMMAND, carry_out, argv)


def carry_out(words: Sequence[str]) -> int:
    flags, composed = read_command(words)
    if base.config_shown(flags, composed):
        return OK
    plan = base.prepared(composed, make_plan, check, pin)
    return dry_run(plan) if flags["dry_run"] else search(plan)


def search(plan: TunePlan) -> int:
    """Carry out the plan, then write its report."""
    from aisp_ray.tune.run import run

    code = run(plan)
    if code in (OK, SOME_ERRORS):
        with for_a_reader():
            show_report(plan.out, "best_of_n", plan.report)
    return code


def read_command(words: Sequence[str]) -> tuple[dict[str, bool], Composed]:
    """The flags, and the composed configuration; the space names the method."""
    given = {word.partition("=")[0]: word for word in words}
    if "method" in given:
        name = given["method"].partition("=")[2]
        raise ConfigError(
            f"method={name}: the space names the method; choose a space with tune=... or set tune.method={name}"
        )
    alone = dataclasses.replace(COMMAND, settings=_NoKeys, groups=("tune",), flags=())
    space = base.read(alone, [word for key, word in given.items() if key.split(".")[0] == "tune"])[1].one("tune")
    if not isinstance(space, Space):
        raise ConfigError("tune must be a preset of conf/tune")
    return base.read(COMMAND, [*words, f"method={space.method}"])


@dataclasses.dataclass(frozen=True)
class _NoKeys:
    """The keys of a command that only chooses."""


def make_plan(composed: Composed) -> TunePlan:
    """Build every settings object. Raises ConfigError with one sentence for the first that is wrong."""
    settings: TuneSettings = composed.settings
    parts = {group: composed.one(group) for group in ("policy", "reward", "data", "heldout")}
    judges = composed.built("judges")
    ((name, space),) = composed.built("tune").items()
    ((_, preset),) = composed.groups["method"].items()
    sweep = settings.search in _SWEEPS
    shared = ("local", "seed", "search", "rules", "heldout_limit", "objective", "save_as", "report")
    return TunePlan(
        name=name,
        workbench=Workbench(space.typed(preset["_target_"]), preset),
        judges=judges,
        run=run_settings(composed),
        out=absolute(settings.out),
        trials=settings.trials if sweep or settings.trials is not None else _TRIALS,
        **parts,
        **{key: getattr(settings, key) for key in shared},
        config=composed.tree(),
        fingerprint={
            "version": __version__,
            "seed": settings.seed,
            "judges": {judge: describe(spec) for judge, spec in judges.items()},
            **{part: describe(spec) if spec is not None else None for part, spec in parts.items()},
        },
    )


def check(plan: TunePlan) -> list[str]:
    """What is wrong with the plan and can be said before anything loads, a sentence each."""
    found = [*plan.policy.check(), *plan.reward.check(), *plan.data.check()]
    found += plan.heldout.check() if plan.heldout is not None else []
    for name, judge in plan.judges.items():
        found += judge.check(f"judges.{name}")
    try:
        make_objective(plan.objective, list(plan.judges))
        plan.workbench.centre()
        found += plan.policy.refusals({plan.workbench.space.method: plan.workbench.make({})})
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

    So a search resumes with the same models and prompts, or reports what has changed.
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
    tokens = most * workbench.make({}).max_generated_tokens(most_new_tokens(plan.policy))
    with for_a_reader():
        tell(f"would try the preset {workbench.space.method} and {count} settings of {plan.name} by {plan.search}")
        for axis in workbench.space.axes():
            tell(f"  {axis.key}: {', '.join(map(str, axis.values)) if axis.values else f'{axis.low} to {axis.high}'}")
        tell(
            f"  {workbench.samples()} samples per prompt for every setting, {rules.num_prompts} tuning prompts, "
            f"stop={rules.stop}: at most {most:,} evaluations, {most * workbench.samples():,} samples, "
            f"{tokens:,} tokens"
        )
        tell(f"  {_time_of(plan, tokens)}")
        tell(f"  trials: {inside(plan.out, 'trials.parquet')}")
    return OK


def _time_of(plan: TunePlan, tokens: int) -> str:
    """About how long so many tokens take, where a run with these models has been timed."""
    from aisp_ray.pipeline.estimate import earlier_rate

    rate = earlier_rate(plan.out, describe(plan.policy), describe(plan.reward))
    if rate is None:
        return "time: unknown, as no evaluation with this policy and reward lies beside this output"
    return f"time: {rate.says(tokens, 'if no setting stops early')}"
