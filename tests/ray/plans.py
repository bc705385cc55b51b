"""Plans over models that sleep; as a script it runs one, so that a test can kill it."""

import json
import sys

import pyarrow.parquet as pq

from aisp_ray.data.prompts import Prompts
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.pipeline import run
from aisp_ray.plan import Plan, RunSettings
from aisp_ray.results import VOLATILE_COLUMNS
from tests.fakes import SleepPolicy, SleepReward

TEMPORARY = {*VOLATILE_COLUMNS}


def make_plan(settings):
    """settings: out, path; optional policy, reward, judge, run (dicts), n, kappa, methods, limit, total, seed."""
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


if __name__ == "__main__":
    sys.exit(run(make_plan(json.loads(sys.argv[1]))))
