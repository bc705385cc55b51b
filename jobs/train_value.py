"""Train RE-Control's value function on a policy's own responses: `python jobs/train_value.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout works without being installed

from aisp_ray.commands.train_value import main

if __name__ == "__main__":
    sys.exit(main())
