"""Plans over models that sleep; as a script it runs one, so that a test can kill it."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from aisp_ray.data.prompts import Prompts
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.pipeline import run
from aisp_ray.plan import Plan, RunSettings
from aisp_ray.report.write import read_report, report_text
from aisp_ray.results import VOLATILE_COLUMNS
from tests.fakes import SleepPolicy, SleepReward

TEMPORARY = {*VOLATILE_COLUMNS}
SLOW = {"step_seconds": 0.02}  # so that a run is still under way when it is killed
UNENDING = {**SLOW, "faults": {"00000011": "hang"}}  # however late that is


def write_prompts(path, count):
    lines = [json.dumps({"prompt": f"question {i} of many"}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def make_plan(settings):
    """settings: out, path; optional policy, reward, judge, run (dicts), n, kappa, methods, limit, total, seed.

    here: as a script, with the machines in its own process.
    """
    n, kappa = settings.get("n", 4), settings.get("kappa", 4)
    methods = {"aisp": Aisp(n=n, kappa=kappa), "best_of_n": BestOfN(n=n, kappa=kappa)}
    methods = {name: methods[name] for name in settings.get("methods", methods)}
    run_settings = {"progress_seconds": 5, "snapshot_seconds": 0.5, **settings.get("run", {})}
    policy = {"num_cpus": 0.2, "step_seconds": 0.0005, **settings.get("policy", {})}
    return Plan(
        methods=methods,
        policy=SleepPolicy(**policy),
        reward=SleepReward(**{"num_cpus": 0.2, **settings.get("reward", {})}),
        judges={"judge": SleepReward(num_cpus=0.2)} if settings.get("judge") else {},
        data=Prompts(path=settings["path"], name="fake"),
        run=RunSettings(**run_settings),
        seed=settings.get("seed", 0),
        limit=settings.get("limit"),
        total=settings.get("total"),
        out=str(settings["out"]),
        fingerprint={"methods": list(methods), "n": n, "kappa": kappa, "seed": settings.get("seed", 0)},
    )


def rows_of(out, folder="rows"):
    """All rows by (ordinal, method), without what differs between two runs of one command. None may be twice."""
    table = pq.read_table(f"{out}/{folder}")
    rows = {}
    for row in table.to_pylist():
        key = (row["ordinal"], row["method"], row.get("iteration"), row.get("particle"))
        assert key not in rows, f"twice: {key}"
        rows[key] = {name: value for name, value in row.items() if name not in TEMPORARY}
    return rows


def unjudged(settings):
    """The rows of a run as they would be without its judges."""
    rows = rows_of(settings["out"])
    return {key: {**row, "judge_names": [], "judge_rewards": []} for key, row in rows.items()}


def summary(settings):
    return json.loads(Path(settings["out"], "summary.json").read_text())


def snapshot_of(settings):
    try:
        return json.loads(Path(settings["out"], "_state", "inflight.json").read_text())
    except FileNotFoundError:
        return {"searches": [], "rows": []}


def searches_under_way(settings):
    return [progress["state"]["iteration"] for _, _, progress in snapshot_of(settings)["searches"]]


def rows_there(settings):
    return len(rows_of(settings["out"])) if list(Path(settings["out"], "rows").glob("*.parquet")) else 0


def words_of_report(settings):
    return " ".join(report_text(read_report(settings["out"])).split())


if __name__ == "__main__":
    of = json.loads(sys.argv[1])
    if of.get("here"):
        import pytest

        from tests.machines import in_this_process

        in_this_process(pytest.MonkeyPatch().setattr)
    sys.exit(run(make_plan(of)))
