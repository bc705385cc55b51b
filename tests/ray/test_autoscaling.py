"""Nodes come when actors wait for them and go when the tail needs them no more: Ray's own autoscaler, fake machines."""

import json
import os
import shutil
import time

import pytest
from heads import Head, free_port

from tests.driver_process import DriverProcess
from tests.plans import rows_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

HEAD_ID = "f" * 51 + "00000"
ENVIRONMENT = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}
COMMANDS = [f"{whose}setup_commands" for whose in ("", "head_", "worker_")]
COMMANDS += ["initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"]
COMMANDS += ["cluster_synced_files", "rsync_exclude", "rsync_filter"]


def worker(role, most):
    resources = {"CPU": 1, "GPU": 1, "object_store_memory": 80 << 20}
    return {
        "resources": resources,
        "labels": {"aisp-role": role},
        "node_config": {},
        "min_workers": 0,
        "max_workers": most,
    }


@pytest.fixture
def head(tmp_path):
    from ray._private.services import get_node_ip_address

    folder = f"/tmp/aisp-auto-{os.getpid()}"
    config, port = tmp_path / "autoscaling.json", free_port()
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"{get_node_ip_address()}:{port}",
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
        "disable_node_updaters": True,  # there is nothing to install
    }
    types = {"ray.head.default": {"resources": {"CPU": 3}, "node_config": {}, "max_workers": 0}}
    types |= {"policy": worker("policy", 3), "reward": worker("reward", 1)}
    settings = {
        "cluster_name": "fake",
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        **{key: [] for key in COMMANDS},
        "auth": {},
        "docker": {},
        "file_mounts": {},
    }
    config.write_text(json.dumps(settings))
    options = ["--num-cpus=3", "--num-gpus=0", f"--autoscaling-config={config}"]
    head = Head(folder, options, ENVIRONMENT, port)
    try:
        head.wait()
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Nodes:
    """How many nodes of each role are alive, as the control store says."""

    def __init__(self, address):
        from ray._raylet import GcsClient

        self.client = GcsClient(address=address)
        self.seen = []

    def look(self):
        infos = self.client.get_all_node_info().values()
        alive = [dict(info.labels).get("aisp-role") for info in infos if info.state == 0]
        counts = alive.count("policy"), alive.count("reward")
        if not self.seen or self.seen[-1] != counts:
            self.seen.append(counts)
        return counts


def test_nodes_follow_the_run_from_none_to_the_maximum_and_back(head, prompts, tmp_path):
    from ray._private.services import get_node_ip_address

    address = f"{get_node_ip_address()}:{head.port}"
    role = lambda name: {"num_gpus": 1.0, "label_selector": {"aisp-role": name}}  # noqa: E731
    settings = {
        "out": str(tmp_path / "out"),
        "path": prompts(240),
        # the last prompt naps 10 s an iteration: a tail in which one actor is enough
        "policy": {"actors": (1, 3), "step_seconds": 0.2, "faults": {"00000239": "nap"}, **role("policy")},
        "reward": role("reward"),
        "methods": ["best_of_n"],
        "run": {"chunk_rows": 8},
    }
    nodes = Nodes(address)
    assert nodes.look() == (0, 0)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    driver = DriverProcess(settings, address)
    try:
        while driver.process.poll() is None:
            nodes.look()
            time.sleep(0.2)
        during = list(nodes.seen)
        code, said = driver.wait()
        assert code == 0, said
        deadline = time.monotonic() + 90
        while nodes.look() != (0, 0) and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        if driver.process.poll() is None:
            driver.process.kill()
        del os.environ["RAY_AUTH_MODE"]
    policies = [count for count, _ in nodes.seen]
    assert max(policies) == 3, nodes.seen
    assert (3, 1) in during
    after_peak = [count for count, _ in during[during.index((3, 1)) :]]
    assert min(after_peak) < 3, f"no node went during the tail: {during}"
    assert nodes.seen[-1] == (0, 0), nodes.seen
    assert len(rows_of(settings["out"])) == 240
