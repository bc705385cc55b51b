"""What `python jobs/tune.py --help` prints."""

from __future__ import annotations

from aisp_ray import config
from aisp_ray.tune.objective import KINDS

_USAGE = """\
python jobs/tune.py [key=value ...]

Searches settings of one method: every setting gets the same number of samples a prompt, all see the same tuning
prompts with the same noise, bad ones stop early. The best one and the preset are then measured on held-out prompts,
and the best one is written as a preset. Alone it is a small search on the embedded demo. The same command goes on
where it stopped; another search or more trials in the same `out` pay only for what is new.

  python jobs/tune.py                                                  the demo
  python jobs/tune.py tune=aisp trials=40 limit=64 out=outputs/aisp    sigma, lambda, alpha, tau
  python jobs/tune.py tune=sigma search=grid limit=64                  a sweep with intervals
  python jobs/tune.py tune=aisp search=one_at_a_time                   each key in turn around the preset
  python jobs/tune.py tune=aisp tune.keys.sigma=[0.3,0.5,0.7]          other values
  python jobs/tune.py tune=any tune.method=misvo 'tune.keys={step_size: {low: 0.01, high: 1, log: true}}'
  dry_run=true       check the command and the data, say what would run and what it costs at most
  print_config=true  show the configuration that would be used
"""


def help_text() -> str:
    lines = [_USAGE, "Keys (default, meaning):"]
    for line in (config.conf_folder() / "tune.yaml").read_text(encoding="utf-8").split("\n"):
        key, mark, rest = line.partition(":")
        if mark and not key.startswith("#"):
            default, _, meaning = rest.partition("#")
            lines.append(f"  {key:<16} {default.strip():<16} {meaning.strip()}")
    lines += ["", f"  objective is one of {KINDS}", "", "tune="]
    lines += [f"  {name:<20} {text}" for name, text in config.choices("tune").items()]
    lines += ["", "tune.key of a space:"]
    space = config.schema_of("aisp_ray.tune.space.Space", "tune")
    lines += [f"  {name:<20} {text}" for name, text in config.comments(space).items()]
    lines += ["", "Choices and keys of policy, reward, judges, data, run and method: python jobs/eval.py --help"]
    return "\n".join(lines)
