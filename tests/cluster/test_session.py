"""What is said where a cluster is named that cannot be joined."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aisp_ray.cluster import session
from aisp_ray.cluster.session import SessionError, connect, starts_local


@pytest.fixture(autouse=True)
def no_session(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("address", ["ray://host:10001", "http://127.0.0.1:8265"])
def test_an_address_of_another_kind_is_refused_with_what_to_give(address, monkeypatch):
    with pytest.raises(SessionError, match=r"run\.address=.* is not host:port of a Ray head.*ray job submit"):
        connect(address, {})
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SessionError, match=r"^RAY_ADDRESS="):
        starts_local(None)


def test_a_head_that_is_gone_is_said_within_seconds(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(SessionError, match=rf"no Ray head answers at .*:{port}.*RAY_ADDRESS=.*run\.address=local"):
        connect(None, {})
    assert time.monotonic() - started < 20


def test_a_cluster_of_another_version_is_said_with_the_way_out(monkeypatch):
    import ray

    def other_version(*_, **__):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n")

    monkeypatch.setattr(ray, "init", other_version)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        monkeypatch.setattr(session, "_head_of", lambda address: f"127.0.0.1:{head.getsockname()[1]}")
        with pytest.raises(SessionError, match=r"last `ray start`.*Ray: 2\.9\.0.*run\.address=local"):
            connect(None, {})


def test_a_local_cluster_is_started_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://nowhere:8265")
    assert starts_local("local")


def test_too_few_open_files_are_refused_with_the_number_needed(monkeypatch):
    monkeypatch.setattr(session.resource, "getrlimit", lambda what: (64, 64))
    with pytest.raises(SessionError, match=r"at most 64 files .*needs 1024"):
        connect("local", {})


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_too_long_for_sockets_is_refused_before_ray_starts(name, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, f"{tmp_path}/{'a' * 120}")
    with pytest.raises(SessionError, match=rf"^{name}=\S+ is \d+ bytes too long .*give a shorter folder") as caught:
        connect("local", {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    short = "/tmp/" + "a" * 20
    monkeypatch.setenv(name, short)
    session.check_machine()
    Path(short).rmdir()


def test_a_folder_that_cannot_be_written_is_refused_before_ray_starts(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc/y")
    with pytest.raises(SessionError, match=r"^RAY_TMPDIR=/proc/y cannot be written to .*another folder"):
        connect("local", {})


def test_letters_that_ray_cannot_send_in_an_ascii_locale_are_refused_before_it_starts():
    code = """if True:
        import sys
        from aisp_ray.cluster.session import connect
        for text in sys.argv[1:]:
            sys.orig_argv = ["python", text]
            try:
                connect("local", {})
            except Exception as error:
                print(f"{type(error).__name__}: {error}")
    """
    texts = ["Grüße", "→", "日本"]
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, "-c", code, *texts], env=ascii_locale, capture_output=True, text=True)
    refusals = ended.stdout.splitlines()
    assert len(refusals) == len(texts), ended.stderr
    for refusal in refusals:
        assert refusal.startswith("SessionError: the locale's encoding is ascii")
        assert "PYTHONUTF8=1" in refusal
