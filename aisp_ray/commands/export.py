"""The command `python jobs/export.py out=...` (installed: `aisp-export`)."""

from __future__ import annotations

from collections.abc import Sequence

from aisp_ray.commands import base
from aisp_ray.commands.base import Command, for_a_reader
from aisp_ray.errors import OK, refuse
from aisp_ray.report.export.run import Exported, export
from aisp_ray.report.export.settings import ExportSettings

_ABOUT = """\
python jobs/export.py [key=value ...]

Data sets to train on, from the particles and rows of an evaluation: Parquet for `datasets` and TRL.

  python jobs/export.py out=outputs/demo format=sft
  python jobs/export.py out=outputs/demo format=preference rejected=base min_margin=0.5 to=data/pairs
  python jobs/export.py out=outputs/demo format=candidates methods=[aisp] push_to=me/candidates
  python jobs/export.py out=[outputs/a,outputs/b] length_ratio=1.2 prompt_similarity=0.8 control=true

preference and candidates need an evaluation with run.particles=true.
"""
COMMAND = Command("export", _ABOUT, ExportSettings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return base.main(COMMAND, carry_out, argv)


def carry_out(words: Sequence[str]) -> int:
    settings = base.read(COMMAND, words)[1].settings
    try:
        made = export(settings)
    except OSError as error:  # a place that cannot be read or written, in its own words
        return refuse(error)
    with for_a_reader():
        print("\n".join(lines_of(made, settings)))
    return OK


def lines_of(made: Exported, settings: ExportSettings) -> list[str]:
    """What the terminal shows: what each filter dropped, what was written, how to load it."""
    named = [(settings.format, made.rows), *([("control", made.control)] if made.control else [])]
    counts = [f"{name}: {', '.join(f'{split} {n:,} rows' for split, n in rows.items())}" for name, rows in named]
    load = [f'load it with datasets.load_dataset("{settings.folder}")']
    if made.control:
        load.append(f'the control with datasets.load_dataset("{settings.folder}", "control")')
    pushed = [f"pushed to https://huggingface.co/datasets/{settings.push_to}"] if settings.push_to else []
    return [*made.drops.lines(), *counts, settings.folder, *load, *pushed]
