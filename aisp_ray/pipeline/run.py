"""A run from prompts to Parquet: Ray Data in, the driver over two elastic pools, Ray Data out.

`run` is called with a checked plan and returns an exit code: 0 all rows are ok, 1 failed, 2 refused, 3 some rows are
errors, 75 try again (no machines, or a service was away), 130 and 143 stopped by a signal. Whatever the code, the same
command goes on where it stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from aisp_ray.cluster.placement import find_problems, most_actors
from aisp_ray.cluster.session import (
    SessionError,
    connect,
    local_node,
    nodes_now,
    origin,
    quiet_data,
    starts_local,
)
from aisp_ray.files import Output
from aisp_ray.pipeline.manifest import RefusedError
from aisp_ray.pipeline.progress import Screen
from aisp_ray.plan import Plan, in_ray_job
from aisp_ray.types import Placement

REFUSED = 2


def run(plan: Plan) -> int:
    """Carry out the plan; returns the exit code. Joins a Ray session that is open here, else opens and closes one."""
    screen = Screen(every=plan.run.progress_seconds, as_json=plan.run.json_logs)
    problems = check_output(plan)
    if problems:
        return refuse(problems)
    try:
        local = starts_local(plan.run.address)
        opened = connect(plan.run.address, asks_of(plan), plan.run.json_logs)
    except SessionError as error:
        return refuse([str(error)])
    import ray

    try:
        if opened and not local and not in_ray_job():
            screen.say(
                f"joined the Ray cluster of {origin(plan.run.address)}; run.address=local would start one of its own"
            )
        nodes = nodes_now()
        problems = find_problems(asks_of(plan), nodes)
        if problems:
            return refuse(problems)
        quiet_data()
        from aisp_ray.pipeline.job import Job  # Ray Data is loaded only now

        most = most_actors(asks_of(plan), sum(node.num_cpus * node.copies for node in nodes))
        return Job(plan, Output(plan.out), screen, most).run()
    except RefusedError as error:
        return refuse([str(error)])
    finally:
        if opened:
            ray.shutdown()


def preflight(plan: Plan) -> list[str]:
    """What can never work, a sentence each: the output, and the cluster's resources against what is asked."""
    problems = check_output(plan)
    if problems:
        return problems
    try:
        if starts_local(plan.run.address):
            return find_problems(asks_of(plan), [local_node(asks_of(plan))])
        opened = connect(plan.run.address, asks_of(plan))
    except SessionError as error:
        return [str(error)]
    import ray

    try:
        return find_problems(asks_of(plan), nodes_now())
    finally:
        if opened:
            ray.shutdown()


def asks_of(plan: Plan) -> Mapping[str, Placement]:
    """Every pool's name as in the configuration, and its placement."""
    return {"policy": plan.policy, "reward": plan.reward, **{f"judges.{name}": j for name, j in plan.judges.items()}}


def check_output(plan: Plan) -> list[str]:
    """Why `out` cannot be written to; nothing if it can."""
    if in_ray_job() and "://" not in plan.out and not plan.out.startswith(("/", "~")):
        return [
            f"out={plan.out} is relative, and the working folder of a Ray job is a throw-away copy; "
            f"give an absolute path on a disk that all nodes share, or a URI (s3://, gs://)"
        ]
    try:
        output = Output(plan.out)
        if not output.is_local:
            output.filesystem.get_file_info(output.root)  # credentials, bucket, host
    except (ValueError, OSError) as error:
        return [f"out={plan.out} cannot be reached: {error}"]
    if output.is_local:
        there = next(folder for folder in (Path(output.root), *Path(output.root).parents) if folder.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            return [f"out={plan.out} cannot be written to: {there} is not a folder that this user may write in"]
    return []


def refuse(problems: list[str]) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return REFUSED
