"""The cluster files, checked offline: Ray's own schema, and what our runs need of them."""

import copy
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from aisp_ray.cluster.placement import Node, find_problems
from aisp_ray.cluster.session import types_of
from aisp_ray.commands.eval import make_plan, read_command
from aisp_ray.types import Placement

ROOT = Path(__file__).parent.parent.parent
LAUNCHER = [ROOT / "cluster.yaml", ROOT / "deploy" / "cluster-gcp.yaml"]
RAYJOB = ROOT / "deploy" / "rayjob.yaml"


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def validate(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def pinned(package):
    found = re.search(rf"^{package}(?:\[[^]]*\])?==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    return found[1]


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_ray_accepts_the_cluster_file(path):
    validate(read(path))


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_ray_would_not_accept_anything(path):
    """The check above can fail: misspelt keys and wrong types are found."""
    for spoil in (
        lambda c: c.update(idle_timeout_minuts=3),
        lambda c: c["available_node_types"]["policy"].update(max_worker=3),
        lambda c: c["available_node_types"]["policy"]["resources"].update(GPU="one"),
        lambda c: c.update(head_node_type="nobody"),
    ):
        config = read(path)
        spoil(config)
        with pytest.raises(Exception):  # noqa: B017, PT011  # jsonschema's and Ray's own
            validate(config)


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_the_head_stays_and_the_gpus_are_on_spot(path):
    config = read(path)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    assert head["resources"]["GPU"] == 0
    assert head["resources"]["CPU"] >= 2  # the driver and Ray Data
    spot = lambda node: "InstanceMarketOptions" in node["node_config"] or node["node_config"].get("scheduling")  # noqa: E731
    assert not spot(head)
    workers = {name: node for name, node in types.items() if name != config["head_node_type"]}
    assert set(workers) == {"policy", "reward"}
    for name, node in workers.items():
        assert spot(node)
        assert node["resources"]["GPU"] >= 1
        assert node["labels"] == {"aisp-role": name}
        assert node["min_workers"] == 0
        assert node["max_workers"] > 1
    assert sum(node["max_workers"] for node in workers.values()) <= config["max_workers"]
    assert config["idle_timeout_minutes"] <= 15


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_versions_are_those_of_the_constraints(path):
    config = read(path)
    assert config["docker"]["image"] == f"rayproject/ray:{pinned('ray')}-py311-gpu"
    setup = " ".join(config["setup_commands"])
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    packages = {re.match(r"[\w-]+", line)[0] for line in needed} - {"ray"}  # which the image has
    assert sorted(f"{package}=={pinned(package)}" for package in packages) == sorted(setup.split()[3:])
    assert any("HF_HOME" in option for option in config["docker"]["run_options"])
    starts = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in starts  # job submission is remote code execution: never public


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_the_run_of_the_header_can_be_placed_on_it(path):
    nodes = [Node(8, 0, {"aisp-role": "head"}), *types_of(read(path))]
    asks = {
        role: Placement(actors=(1, most), num_gpus=1, label_selector={"aisp-role": role})
        for role, most in (("policy", 8), ("reward", 4))
    }
    assert find_problems(asks, nodes) == []
    asks["policy"] = Placement(actors=(9, 9), num_gpus=1, label_selector={"aisp-role": "policy"})
    assert "only 8 of at least 9 actors" in find_problems(asks, nodes)[0]


def test_the_commands_in_the_files_are_ones_that_the_job_understands():
    header = LAUNCHER[0].read_text(encoding="utf-8").split("ray job submit")[1].split("ray down")[0]
    words = header.replace("#", " ").replace("\\\n", " ")
    for command in (words, read(RAYJOB)["spec"]["entrypoint"]):
        words = shlex.split(command.split("jobs/eval.py")[1])
        plan = make_plan(read_command(words)[1])
        assert (plan.policy.actors, plan.reward.actors) == ((1, 8), (1, 4))
        assert plan.policy.label_selector == {"aisp-role": "policy"}
        assert plan.out == "s3://BUCKET/runs/first"


def test_the_kubernetes_job_is_the_same_cluster():
    job = read(RAYJOB)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == pinned("ray")
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"  # labels of workers need it
    assert spec["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    types = read(LAUNCHER[0])["available_node_types"]
    for name, group in groups.items():
        assert group["labels"] == {"aisp-role": name}
        assert (group["minReplicas"], group["maxReplicas"]) == (0, types[name]["max_workers"])
        (container,) = group["template"]["spec"]["containers"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) >= 1
        assert container["resources"]["limits"] == container["resources"]["requests"]
    for group in (spec["headGroupSpec"], *groups.values()):
        (container,) = group["template"]["spec"]["containers"]
        assert pinned("ray") in container["image"]
        assert {"name": "HF_HOME", "value": "/hf-cache"} in container["env"]
        assert group["template"]["spec"]["restartPolicy"] == "Never"  # the pools replace what is lost
    head = spec["headGroupSpec"]["template"]["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"  # docs/cluster.md says why
    for group in (spec["headGroupSpec"], *groups.values()):  # one cache for all, as docs/cluster.md says
        (volume,) = group["template"]["spec"]["volumes"]
        assert volume["persistentVolumeClaim"] == {"claimName": "hf-cache"}
    assert "tolerations" not in head
    assert "out=s3://" in job["spec"]["entrypoint"]
    assert job["spec"]["backoffLimit"] > 0
