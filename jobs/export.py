"""Data sets to train on, from evaluations: `python jobs/export.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout works without being installed

from aisp_ray.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
