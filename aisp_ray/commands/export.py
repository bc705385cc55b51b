"""The command `python jobs/export.py out=...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aisp_ray.commands.report import describe, read_words
from aisp_ray.report.export import ExportSettings, export

HELP = """Data sets to train on, from the particles and rows of an evaluation: Parquet for `datasets` and TRL.

  python jobs/export.py out=outputs/demo format=sft
  python jobs/export.py out=outputs/demo format=preference rejected=base min_margin=0.5 to=data/pairs
  python jobs/export.py out=outputs/demo format=candidates methods=[aisp] push_to=me/candidates

preference and candidates need an evaluation with run.particles=true.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 written, 2 the command or an output is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "help"} & set(words):
        print(HELP + "\n" + describe(ExportSettings, {}))
        return 0
    try:
        settings, _ = read_words(words, ExportSettings, {})
        rows = export(settings)
    except (ValueError, OSError) as error:  # OSError: a place that cannot be read or written, in its own words
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{settings.format}: {', '.join(f'{split} {count:,} rows' for split, count in rows.items())}")
    print(f'{settings.folder}\nload it with datasets.load_dataset("{settings.folder}")')
    return 0
