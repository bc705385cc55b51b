"""One small cluster for all tests that need Ray: a head here, and nodes that a test may add and take away."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="session")
def cluster():
    from aisp_ray.cluster.session import quiet_environment

    quiet_environment()
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():  # another module's session
        ray.shutdown()
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine takes longer than Ray's 30
    options = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}
    # a killed node refuses connections at once; three such answers and it counts as dead
    options["_system_config"] = {"health_check_period_ms": 1000, "health_check_initial_delay_ms": 1000}
    options["_system_config"] |= {"health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def write_prompts(path, count):
    lines = [json.dumps({"prompt": f"question {i} of many"}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def prompts(tmp_path):
    """A function that writes n prompts and returns their path."""
    return lambda count: write_prompts(tmp_path / "prompts.jsonl", count)


class DriverProcess:
    """`run(plan)` in a process of its own, which can be killed. settings: keys of `plans.make_plan`."""

    def __init__(self, settings, address=None):
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
        env.pop("RAY_ADDRESS", None)
        if address:
            env["RAY_ADDRESS"] = address
        command = [sys.executable, str(HERE / "plans.py"), json.dumps(settings)]
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


@pytest.fixture
def start_driver():
    started = []

    def start(settings, address=None):
        started.append(DriverProcess(settings, address))
        return started[-1]

    yield start
    for driver in started:
        if driver.process.poll() is None:
            driver.process.kill()
            driver.process.wait()
