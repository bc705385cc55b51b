"""A Ray head of its own for tests that need the real thing: job submission, autoscaling."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Head:
    """A `ray start --head` with its own ports and folder; ended by its own processes' ids, never by `ray stop`."""

    def __init__(self, folder, options=(), env=None, port=None):
        self.folder = folder
        self.port = port or free_port()
        self.dashboard = free_port()
        self.env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        self.env["RAY_worker_niceness"] = "0"  # a busy machine would starve them
        self.env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{self.dashboard}"
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"  # whose python an entrypoint runs
        self.env.pop("RAY_ADDRESS", None)
        ports = {"--port": self.port, "--dashboard-port": self.dashboard, "--dashboard-agent-listen-port": free_port()}
        ports |= {"--ray-client-server-port": free_port()}
        self.env |= env or {}
        command = [RAY, "start", "--head", *options, f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"]
        command += ["--disable-usage-stats", "--object-store-memory=200000000", *(f"{k}={v}" for k, v in ports.items())]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr

    def wait(self, seconds=240):
        """Until jobs can be submitted."""
        deadline = time.monotonic() + seconds
        while (asked := self.ray("job", "list", check=False)).returncode:
            assert time.monotonic() < deadline, asked.stdout + asked.stderr
            time.sleep(1)

    def ray(self, *words, check=True, **more):
        done = subprocess.run([RAY, *words], env=self.env, capture_output=True, text=True, timeout=400, **more)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def stop(self):
        """End every process that names this head's folder, and their children; no other Ray of this machine."""
        family = []
        for process in psutil.process_iter(["cmdline"]):
            if any(self.folder in word for word in process.info["cmdline"] or []) and process.pid != os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    family += [process, *process.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
