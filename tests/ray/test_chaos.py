"""Kill everything at random times, give the same command again, and compare with an undisturbed run.

Times and victims are drawn from a seed. Policies and rewards sleep; all else is real.
"""

import random
import time

import psutil
import pytest

from aisp_ray.pipeline import run
from tests.plans import make_plan, rows_of

pytestmark = pytest.mark.ray


class Chaos:
    """Ends processes of one cluster: its children only, never another Ray on this machine."""

    def __init__(self, cluster, seed, node):
        self.cluster, self.node = cluster, node
        self.rng = random.Random(seed)
        self.done = []

    def actors(self, kind):
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()]
        found = []
        for raylet in raylets:
            for child in psutil.Process(raylet).children():
                try:
                    if (child.cmdline() or [""])[0].startswith(f"ray::{kind}"):
                        found.append(child)
                except psutil.Error:
                    continue
        return sorted(found, key=lambda process: process.pid)

    def kill_actor(self, kind):
        """False while there is none."""
        victims = self.actors(kind)
        if victims:
            self.rng.choice(victims).kill()
            self.done.append(kind)
        return bool(victims)

    def kill_node(self):
        self.cluster.remove_node(self.node, allow_graceful=False)
        self.node = self.cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
        self.done.append("node")


def survive(chaos, driver, restart, script, pause):
    """Do what the script says at random times until the driver ends by itself; returns its exit code and words."""
    script, due = list(script), 0.0
    while driver.process.poll() is None:
        time.sleep(0.02)
        due = due or time.monotonic() + chaos.rng.uniform(*pause)
        if not script or time.monotonic() < due or not chaos.actors("PolicyActor"):
            continue
        if script[0] == "driver":
            driver.process.kill()
            driver.wait()
            chaos.done.append("driver")
            driver = restart()
        elif script[0] == "node":
            chaos.kill_node()
        elif not chaos.kill_actor(script[0]):
            continue
        script, due = script[1:], 0.0
    return driver.wait()


def disturbed_equals_undisturbed(cluster, prompts, tmp_path, start_driver, chaos_settings):
    count, seed, script, pause, step_seconds = chaos_settings
    settings = {
        "out": str(tmp_path / "disturbed"),
        "path": prompts(count),
        "kappa": 4,
        "policy": {"actors": (3, 3), "step_seconds": step_seconds},
        "reward": {"actors": (2, 2)},
        "run": {
            "chunk_rows": 8,
            "snapshot_seconds": 0.5,
            "in_flight": 24,
            "infra_retries": 8,
            "particles": True,
            "flush_seconds": 0.4,
        },
    }
    clean = {**settings, "out": str(tmp_path / "clean"), "policy": {}, "reward": {}}
    assert run(make_plan(clean)) == 0
    node = cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
    chaos = Chaos(cluster, seed, node)
    restart = lambda: start_driver(settings, cluster.address)  # noqa: E731
    try:
        code, said = survive(chaos, restart(), restart, script, pause)
    finally:
        cluster.remove_node(chaos.node)
    assert code == 0, said
    assert sorted(chaos.done) == sorted(script), f"the run ended before {script} were done: {chaos.done}"
    assert rows_of(settings["out"]) == rows_of(clean["out"])
    assert rows_of(settings["out"], "particles") == rows_of(clean["out"], "particles")
    assert len(rows_of(settings["out"])) == 2 * count
    return said


@pytest.mark.slow
def test_a_short_run_survives_the_loss_of_everything(cluster, prompts, tmp_path, start_driver):
    script = ["PolicyActor", "node", "RewardActor", "driver", "PolicyActor"]
    disturbed_equals_undisturbed(cluster, prompts, tmp_path, start_driver, (48, 7, script, (0.5, 2.5), 0.1))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_long_run_survives_the_loss_of_everything_many_times(cluster, prompts, tmp_path, start_driver, seed):
    kinds = ["PolicyActor"] * 8 + ["RewardActor"] * 5 + ["node"] * 3 + ["driver"] * 4
    random.Random(seed).shuffle(kinds)
    disturbed_equals_undisturbed(cluster, prompts, tmp_path, start_driver, (240, seed, kinds, (0.5, 6.0), 0.08))
