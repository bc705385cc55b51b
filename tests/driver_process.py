"""A run in a process of its own, which a test can stop or kill."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


class DriverProcess:
    """`run(plan)` in a process of its own. settings: keys of `plans.make_plan`; address: of a Ray cluster."""

    def __init__(self, settings, address=None):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        env.pop("RAY_ADDRESS", None)
        if address:
            env["RAY_ADDRESS"] = address
        command = [sys.executable, "-m", "tests.plans", json.dumps(settings)]
        self.process = subprocess.Popen(
            command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def wait(self, seconds=150):
        """(exit code, everything it said)"""
        said, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def wait_for(self, condition, seconds=150):
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"it never came to that: {self.wait(5)[1] if self.process.poll() is not None else ''}"
                )
            time.sleep(0.02)
