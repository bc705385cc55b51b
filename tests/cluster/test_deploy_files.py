"""SkyPilot's and Slurm's files, as far as they can be checked without these tools: form, scripts, and our command."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from aisp_ray.commands.eval import make_plan, read_command
from aisp_ray.errors import RETRY, SOME_ERRORS

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
SKY = yaml.safe_load((DEPLOY / "sky.yaml").read_text(encoding="utf-8"))
SLURM = (DEPLOY / "slurm.sh").read_text(encoding="utf-8")


def command_in(script):
    """The words behind `python jobs/eval.py` in a script."""
    line = re.search(r"python jobs/eval\.py (.*?)\|\|", script.replace("\\\n", " "), re.S)[1]
    return shlex.split(line)


@pytest.mark.parametrize("script", [SKY["setup"], SKY["run"], SLURM], ids=["setup", "run", "slurm"])
def test_bash_reads_the_scripts(script):
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_a_managed_job_is_on_spot_and_started_anew_when_a_run_asks_for_it():
    assert SKY["resources"]["use_spot"]
    assert SKY["resources"]["job_recovery"]["recover_on_exit_codes"] == [RETRY]
    assert f'[ "$code" = {SOME_ERRORS} ]' in SKY["run"]
    assert SKY["envs"]["OUT"].startswith("s3://")
    plan = make_plan(read_command([word.replace("$OUT", SKY["envs"]["OUT"]) for word in command_in(SKY["run"])])[1])
    assert (
        plan.policy.actors[1] * plan.policy.num_gpus + plan.reward.actors[1] * plan.reward.num_gpus <= SKY["num_nodes"]
    )


def test_a_slurm_job_ends_before_its_limit_and_is_queued_again():
    assert f'[ "$code" = {RETRY} ]' in SLURM
    hours = int(re.search(r"--time=(\d+):00:00", SLURM)[1])
    words = [word for word in command_in(SLURM) if word != "$@"]
    assert make_plan(read_command(words)[1]).run.max_hours < hours


@pytest.mark.parametrize("code", [0, 3, 75, 1])
def test_the_slurm_script_requeues_after_75_only(tmp_path, code):
    """The script itself, with programs of Slurm that only say what they were called with."""
    calls = tmp_path / "calls"
    programs = {
        "scontrol": f'echo "scontrol $*" >> {calls}; [ "$1" = show ] && echo node1 || true',
        "srun": f'case "$*" in *hostname*) echo "10.0.0.1 fe80::1";; *) echo "srun $*" >> {calls}; exit {code};; esac',
    }
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "activate").write_text("")
    settings = {"JOB_ID": "42", "SUBMIT_DIR": str(tmp_path), "JOB_NODELIST": "node[1-4]", "JOB_NUM_NODES": "4"}
    environment = {f"SLURM_{name}": value for name, value in settings.items()}
    environment |= {"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "1", "VENV": str(tmp_path)}
    environment["PATH"] = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(["bash", DEPLOY / "slurm.sh", "out=/x", "limit=3"], env=environment, capture_output=True)
    assert done.returncode == code
    said = calls.read_text()
    assert "--address 10.0.0.1:20042 --min-nodes 4" in said
    assert "python jobs/eval.py run.max_hours=11.5 out=/x limit=3" in said
    assert ("scontrol requeue 42" in said) == (code == RETRY)
