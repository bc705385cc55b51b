"""The command `python jobs/export.py out=...` (installed: `aisp-export`)."""

from __future__ import annotations

from collections.abc import Sequence

from aisp_ray.commands import base
from aisp_ray.commands.base import Command, for_a_reader
from aisp_ray.errors import OK, refuse
from aisp_ray.report.export import ExportSettings, export

_ABOUT = """\
python jobs/export.py [key=value ...]

Data sets to train on, from the particles and rows of an evaluation: Parquet for `datasets` and TRL.

  python jobs/export.py out=outputs/demo format=sft
  python jobs/export.py out=outputs/demo format=preference rejected=base min_margin=0.5 to=data/pairs
  python jobs/export.py out=outputs/demo format=candidates methods=[aisp] push_to=me/candidates

preference and candidates need an evaluation with run.particles=true.
"""
COMMAND = Command("export", _ABOUT, ExportSettings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return base.main(COMMAND, carry_out, argv)


def carry_out(words: Sequence[str]) -> int:
    settings = base.read(COMMAND, words)[1].settings
    try:
        rows = export(settings)
    except OSError as error:  # a place that cannot be read or written, in its own words
        return refuse(error)
    with for_a_reader():
        print(f"{settings.format}: {', '.join(f'{split} {count:,} rows' for split, count in rows.items())}")
        print(f'{settings.folder}\nload it with datasets.load_dataset("{settings.folder}")')
    return OK
