"""The command `python jobs/train_value.py` (installed: `aisp-train-value`): a value function for method=re_control."""

from __future__ import annotations

from collections.abc import Sequence

from aisp_ray.commands import base
from aisp_ray.commands.base import Command, run_settings
from aisp_ray.errors import refuse
from aisp_ray.pipeline.value_training import ValuePlan, ValueTraining, train
from aisp_ray.plan import in_ray_job

_ABOUT = """\
python jobs/train_value.py [key=value ...]

Draws responses of a policy, scores them, and trains the value function that method=re_control follows.

  python jobs/train_value.py                                      for the demo models, under a minute
  python jobs/train_value.py policy=llama3_8b reward=ultrarm_13b data=shp data.split=train out=/abs/value.safetensors
  ray job submit --working-dir . -- python jobs/train_value.py out=/abs/value.safetensors
  python jobs/eval.py method=re_control method.re_control.value=/abs/value.safetensors out=outputs/re_control
"""
COMMAND = Command("train_value", _ABOUT, ValueTraining, ("policy", "reward", "data", "run"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return base.main(COMMAND, carry_out, argv)


def carry_out(words: Sequence[str]) -> int:
    plan = make_plan(words)
    problems = [*plan.policy.check(), *plan.reward.check(), *plan.data.check(), *check_out(plan.settings)]
    if "prelogits" not in plan.policy.gives:
        problems.append(
            f"a value function reads pre-logits, which {type(plan.policy).__name__} does not give; set policy to one "
            "whose model we load (policy=hf)"
        )
    return refuse(problems) if problems else train(plan)


def make_plan(words: Sequence[str]) -> ValuePlan:
    """Build every settings object. Raises ConfigError with one sentence for the first that is wrong."""
    _, composed = base.read(COMMAND, words)
    parts = {group: composed.one(group) for group in ("policy", "reward", "data")}
    return ValuePlan(**parts, run=run_settings(composed), settings=composed.settings)


def check_out(settings: ValueTraining) -> list[str]:
    if not settings.out.endswith(".safetensors"):
        return [f"out={settings.out}: the file's name must end in .safetensors"]
    if in_ray_job() and not settings.out.startswith("/"):
        return [
            f"out={settings.out} is relative, and the working folder of a Ray job is thrown away; give an absolute path"
        ]
    return []
