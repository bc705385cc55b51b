"""Hands a report to an experiment tracker: the table as metrics, curves as steps, settings, and the files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aisp_ray.errors import redacted
from aisp_ray.report.rows import flatten
from aisp_ray.report.summary import flat

if TYPE_CHECKING:
    from aisp_ray.report.write import Report


@dataclass(frozen=True, kw_only=True)
class Mlflow:
    """Settings of MLflow (pip install mlflow)."""

    uri: str | None = None  # server or database, e.g. http://host:5000, sqlite:///mlflow.db; null: MLFLOW_TRACKING_URI
    experiment: str = "aisp-ray"  # name of the experiment
    run_name: str | None = None  # null: the name of the report's folder

    def log(self, report: Report) -> None:
        """One MLflow run with everything. Raises ValueError where mlflow is not installed."""
        mlflow = _need("mlflow")
        if self.uri:
            mlflow.set_tracking_uri(self.uri)
        mlflow.set_experiment(self.experiment)
        with mlflow.start_run(run_name=self.run_name or report.name):
            mlflow.log_params({key: str(value)[:500] for key, value in settings_of(report).items()})
            mlflow.log_metrics(dict(last_values(report)))
            for name, step, value in curve_values(report):
                mlflow.log_metric(name, value, step=step)
            if "://" not in report.to:
                mlflow.log_artifacts(report.to)


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Settings of Weights & Biases (pip install wandb; it takes its key from `wandb login`)."""

    project: str = "aisp-ray"  # name of the project
    entity: str | None = None  # user or team; null takes the login's own
    mode: str = "online"  # online | offline (written to ./wandb, synchronised later)
    run_name: str | None = None  # null: the name of the report's folder

    def __post_init__(self) -> None:
        if self.mode not in ("online", "offline"):
            raise ValueError(f"mode is {self.mode!r}; it is online or offline")

    def log(self, report: Report) -> None:
        """One W&B run with everything. Raises ValueError where wandb is not installed."""
        wandb = _need("wandb")
        name = self.run_name or report.name
        with wandb.init(
            project=self.project, entity=self.entity, mode=self.mode, name=name, config=settings_of(report)
        ) as run:
            steps: dict[int, dict[str, float]] = {}
            for key, step, value in curve_values(report):
                steps.setdefault(step, {})[key] = value
            for step in sorted(steps):
                run.log(steps[step], step=step)
            run.summary.update(dict(last_values(report)))
            if "://" not in report.to:
                artifact = wandb.Artifact("report", type="report")
                artifact.add_dir(report.to)
                run.log_artifact(artifact)


def _need(package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"trackers=[{package}]: the package is not installed; pip install {package}") from error


def _name(*parts: str) -> str:
    """A metric's name in letters that every tracker takes."""
    return "/".join(re.sub(r"[^\w\-. ]", "_", part) for part in parts)


def settings_of(report: Report) -> dict[str, Any]:
    """What the outputs ran, flat, from the first output's configuration."""
    manifest: Mapping[str, Any] = next(iter(report.runs.values()))["manifest.json"]
    return {"outs": redacted(", ".join(report.runs)), **flatten(manifest.get("config") or {}, "")}


def last_values(report: Report) -> Iterator[tuple[str, float]]:
    """(name, value) of every number of the table; what is unknown is left out."""
    for record in report.records:
        for name, value in flat(record).items():
            if isinstance(value, int | float):
                yield _name(record.dataset, record.method, name), float(value)


def curve_values(report: Report) -> Iterator[tuple[str, int, float]]:
    """(name, iteration from 1, mean over prompts) of every curve."""
    for section in report.sections:
        for trace, by_label in section.curves.items():
            for label, curve in by_label.items():
                for k, value in enumerate(curve.values):
                    if math.isfinite(value.mean):
                        yield _name(section.dataset, label, "iteration", trace), k + 1, value.mean
