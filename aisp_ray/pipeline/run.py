"""A run from prompts to Parquet: Ray Data in, the driver over two elastic pools, Ray Data out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aisp_ray.errors import refuse
from aisp_ray.files import Output
from aisp_ray.pipeline.exits import Ending
from aisp_ray.pipeline.progress import Screen
from aisp_ray.plan import Plan, in_ray_job


def run(plan: Plan, pilot: int | None = None) -> int:
    """Carry out the plan; returns the exit code (`pipeline.exits`). Uses a Ray session that is open here.

    pilot: only on so many prompts, drawn from all of the plan's, and on one actor of each model. Their rows stay.
    """
    if problems := check_output(plan.out):
        return refuse(problems)
    screen = Screen(every=plan.run.progress_seconds, as_json=plan.run.json_logs)
    screen.say("1/3 importing Ray and joining or starting a cluster, about 10 seconds on one machine")
    from aisp_ray.pipeline.job import Job  # Ray Data is loaded only now

    ending = Ending(screen, plan.out)

    async def main() -> int:
        return await Job(plan if pilot is None else on_one_actor(plan), Output(plan.out), screen, ending, pilot).run()

    return ending.run(main)


def on_one_actor(plan: Plan) -> Plan:
    """With one actor of each model, which gets its share of the searches in flight."""
    most = plan.policy.actors[1]
    run, alone = replace(plan.run, shard=None), {"actors": (1, 1)}
    if run.in_flight is not None:
        run = replace(run, in_flight=math.ceil(run.in_flight / most))
    judges = {name: replace(judge, **alone) for name, judge in plan.judges.items()}
    return replace(
        plan, policy=replace(plan.policy, **alone), reward=replace(plan.reward, **alone), judges=judges, run=run
    )


def preflight(plan: Plan, say: Callable[[str], None] = lambda text: None) -> list[str]:
    """What can never work, a sentence each: the output, and the cluster's resources against what is asked.

    say: takes warnings of what will have to wait.
    """
    from aisp_ray.cluster import remote

    return check_output(plan.out) or remote.preflight(plan, say)


def check_output(out: str) -> list[str]:
    """Why `out` cannot be written to; nothing if it can."""
    if in_ray_job() and "://" not in out and not out.startswith(("/", "~")):
        return [
            f"out={out} is relative, and the working folder of a Ray job is a throw-away copy; "
            f"give an absolute path on a disk that all nodes share, or a URI (s3://, gs://)"
        ]
    try:
        output = Output(out)
        if not output.is_local:
            output.filesystem.get_file_info(output.root)  # credentials, bucket, host
    except (ValueError, OSError) as error:
        return [f"out={out} cannot be reached: {error}"]
    try:
        output.require_writable()
    except OSError as error:  # pyarrow's, too
        there = next((folder for folder in (Path(output.root), *Path(output.root).parents) if folder.exists()), None)
        file = output.is_local and there is not None and not there.is_dir()
        reason = f"{there} is a file" if file else error.strerror or str(error).split("\n")[0]
        return [f"out={out} cannot be written to: {reason}; give a folder or URI that this user may write in"]
    return []
