"""The Ray session of a run: joins a cluster or starts a local one, quietly, and says what is there."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from aisp_ray.cluster.placement import Node, cpus_of
from aisp_ray.errors import SessionError, encodable
from aisp_ray.plan import RunSettings, in_ray_job
from aisp_ray.types import Placement

_ANY = Node(1e6, 1e6, None)  # where it cannot be known what an autoscaler may start
_START_ATTEMPTS = 3  # Ray gives a local node 30 s to start, which an overloaded machine may exceed
_LOCAL_OBJECT_STORE = 256 * 2**20  # bytes; a run moves kilobytes
_OPEN_FILES = 1024  # what a local Ray needs at least
_SOCKET_PATH = 107  # bytes of a Unix socket's path at most
_KNOCKS = 3  # times that a head is looked for before it counts as gone; Ray itself would wait for minutes
_KNOCK_SECONDS = 5.0


def quiet_environment() -> None:
    """Before `import ray`: no usage statistics, no tips about them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TQDM", "0")
    # of a local cluster: Ray would nice its workers by 15, and they are all that computes
    os.environ.setdefault("RAY_worker_niceness", "0")


def starts_local(address: str | None) -> bool:
    """Whether `connect` would start a local cluster, because there is none to join."""
    quiet_environment()
    import ray

    return not ray.is_initialized() and _head_of(address) is None


def origin(address: str | None) -> str:
    """Where the address of a cluster comes from, in words."""
    if address not in (None, "auto"):
        return f"run.address={address}"
    if os.environ.get("RAY_ADDRESS"):
        return f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}"
    return "the last `ray start` on this machine"


def _head_of(address: str | None) -> str | None:
    """host:port of the head to join, None where there is none. Raises SessionError if it is no such address."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address(address)  # type: ignore[arg-type]  # None looks for a head, too
    except Exception as error:  # an unknown form, a host that does not resolve
        raise SessionError(
            f"{origin(address)} is not host:port of a Ray head ({error}); for a cluster elsewhere submit the command "
            f"with `ray job submit --address http://HOST:8265`, for one on this machine set run.address=local"
        ) from error


def _knock(head: str, address: str | None) -> None:
    """Raises SessionError where nothing listens at the head's address, as after a head has died."""
    host, _, port = head.rpartition(":")
    for left in range(_KNOCKS, 0, -1):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
            return
        except OSError as error:
            if left == 1:
                raise SessionError(
                    f"no Ray head answers at {head}, which comes from {origin(address)} ({error}); start one with "
                    f"`ray start --head`, give another run.address, or start a local one with run.address=local"
                ) from error
            time.sleep(1.0)


def local_node(asks: Mapping[str, Placement]) -> Node:
    """This machine as the node of a local cluster. Its CPUs are only counted, not reserved, so it is declared large
    enough for the minimum of the actors and for Ray Data."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    gpus = manager.get_current_node_num_accelerators() if manager is not None else 0
    return Node(max(os.cpu_count() or 1, math.ceil(cpus_of(asks, 0)) + 1), gpus)


def check_machine() -> None:
    """Raises SessionError where this machine cannot start a local Ray."""
    _check_open_files()
    _check_folder()


def _check_open_files() -> None:
    """Raise this process's limit where it may; raises SessionError where Ray could not start under it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _OPEN_FILES or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        raise SessionError(
            f"at most {hard} files may be open (ulimit -n), and a local Ray needs {_OPEN_FILES}; raise the limit, or "
            f"join a cluster with run.address"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))


def _check_folder() -> None:
    """Raises SessionError where a local Ray could not keep its files and sockets in its folder."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "its folder")
    folder = os.environ.get(name, "/tmp")
    session = f"ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    length = len(os.fsencode(os.path.join(folder, session)))
    if length > _SOCKET_PATH:
        raise SessionError(
            f"{name}={folder} is {length - _SOCKET_PATH} bytes too long for a local Ray, whose sockets lie below it "
            f"and may have paths of {_SOCKET_PATH} bytes; give a shorter folder, such as RAY_TMPDIR=/tmp"
        )
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SessionError(
            f"{name}={folder} cannot be written to ({error.strerror}), and a local Ray keeps its files there; "
            f"give another folder with RAY_TMPDIR"
        ) from error


def _check_arguments() -> None:
    """Raises SessionError where Python could not read the command line, which Ray would send on as it is."""
    unread = [word for word in sys.orig_argv if encodable(word) != word]
    if unread:
        raise SessionError(
            f"the locale's encoding is {sys.getfilesystemencoding()}, and Ray cannot send {unread[0]!a} on; "
            "start with PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        )


def connect(address: str | None, asks: Mapping[str, Placement], json_logs: bool = False) -> bool:
    """Join the cluster at `address` (None: RAY_ADDRESS or a running one) or start a local one.

    Returns whether a session was opened here, which then is the caller's to end.

    Raises:
        SessionError: there is an address, and no cluster behind it that this process can join; or the command line
            holds bytes that are no letters in this locale.
    """
    quiet_environment()
    import ray

    if ray.is_initialized():
        return False
    _check_arguments()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if json_logs:
        options["logging_config"] = ray.LoggingConfig(encoding="JSON", log_level="INFO")
    head = _head_of(address)
    if head is not None:
        _knock(head, address)
    else:
        check_machine()
        options |= {
            "num_cpus": int(local_node(asks).num_cpus),
            "include_dashboard": False,
            "object_store_memory": _LOCAL_OBJECT_STORE,
        }
    for left in range(_START_ATTEMPTS, 0, -1):
        try:
            ray.init(address=address, **options)
            break
        except Exception as error:  # Ray raises nothing narrower
            if head is not None:
                reason = " ".join(str(error).split())
                raise SessionError(
                    f"the Ray cluster at {head}, which comes from {origin(address)}, cannot be joined: {reason[:500]}; "
                    f"give another run.address, or run.address=local to start one of its own"
                ) from error
            if left == 1 or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    return True


@contextlib.contextmanager
def joined(
    run: RunSettings, asks: Mapping[str, Placement], say: Callable[[str], None] = lambda text: None
) -> Iterator[list[Node]]:
    """The nodes of the session that is open here, or of one that is opened and closed again. Raises as `connect`."""
    local = starts_local(run.address)
    opened = connect(run.address, asks, run.json_logs)
    import ray

    try:
        if opened and not local and not in_ray_job():
            say(f"joined the Ray cluster of {origin(run.address)}; run.address=local would start one of its own")
        yield nodes_now()
    finally:
        if opened:
            ray.shutdown()


def nodes_now() -> list[Node]:
    """The nodes of the cluster this process is connected to, and those its autoscaler may still start."""
    import ray

    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            there = node["Resources"]
            nodes.append(Node(there.get("CPU", 0.0), there.get("GPU", 0.0), dict(node.get("Labels", {}))))
    return nodes + _nodes_to_come()


def cpus_now() -> tuple[float, float]:
    """(all, free) CPUs of the nodes that are there."""
    import ray

    return ray.cluster_resources().get("CPU", 0.0), ray.available_resources().get("CPU", 0.0)


def _nodes_to_come() -> list[Node]:
    """Node types that this cluster's autoscaler may start. Its configuration is read where the head is, which is where
    a job's driver runs; on Kubernetes it cannot be read, and anything may come."""
    import psutil
    import ray

    here = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        paths = [word.split("=", 1)[1] for word in words if word.startswith("--autoscaling-config=")]
        if paths and here in words:
            return types_of(yaml.safe_load(Path(paths[0]).expanduser().read_text(encoding="utf-8")))
    return [_ANY] if "KUBERNETES_SERVICE_HOST" in os.environ else []


def types_of(config: Mapping[str, Any]) -> list[Node]:
    """Worker types of a cluster launcher's configuration."""
    workers = {name: t for name, t in config["available_node_types"].items() if name != config.get("head_node_type")}
    most = config.get("max_workers", 2)
    return [
        Node(
            float(kind["resources"].get("CPU", 0)),
            float(kind["resources"].get("GPU", 0)),
            dict(kind.get("labels", {})),
            kind.get("max_workers", most),
        )
        for kind in workers.values()
    ]
