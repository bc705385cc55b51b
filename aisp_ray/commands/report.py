"""The command `python jobs/report.py out=...` (installed: `aisp-report`): its keys and what it prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from aisp_ray.commands import base
from aisp_ray.commands.base import Command, for_a_reader
from aisp_ray.errors import OK, refuse

_ABOUT = """\
python jobs/report.py [key=value ...]

Table, figures and one page from the rows of one or several evaluations, or of searches of settings.

  python jobs/report.py out=outputs/demo
  python jobs/report.py out=outputs/tune
  python jobs/report.py out=[outputs/seed0,outputs/seed1] to=outputs/both baseline=best_of_n_tuned
  python jobs/report.py out=outputs/demo judges=[demo_gold] judge_curves=true
  python jobs/report.py out=outputs/demo metrics=[diversity,words,coherence] metric.coherence.encoder=path/to/encoder
"""


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


COMMAND = Command("report", _ABOUT, ReportSettings, ("metric", "judges", "tracker"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return base.main(COMMAND, carry_out, argv)


def carry_out(words: Sequence[str]) -> int:
    _, composed = base.read(COMMAND, words)
    try:
        text = write(composed.settings, {group: composed.built(group) for group in COMMAND.groups})
    except OSError as error:  # a place that cannot be read or written, in its own words
        return refuse(error)
    with for_a_reader():
        print(text)
    return OK


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
