"""Exceptions are sorted where they happen and read where they arrive."""

import pickle
from urllib.error import HTTPError, URLError

import pytest
import ray.exceptions as rx
import requests

from aisp_ray.cluster.failures import CallError, read_error, sort_error, sort_load_error
from aisp_ray.data.prompts import Prompts
from aisp_ray.errors import DataError


class RateLimitError(Exception):
    """As a client of a remote judge calls it."""


class AcceleratorError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("too long"), "data"),
        (RuntimeError("CUDA error: device-side assert triggered"), "broken"),
        (RuntimeError("an illegal memory access was encountered"), "broken"),
        (AcceleratorError("unspecified launch failure"), "broken"),
        (ConnectionRefusedError("refused"), "service"),
        (TimeoutError("read"), "service"),
        (RateLimitError("429"), "service"),
        (requests.ConnectionError("no route"), "service"),
        (requests.Timeout("read"), "service"),
        (URLError("no route"), "service"),
        (HTTPError("http://x", 503, "busy", {}, None), "service"),
        (HTTPError("http://x", 404, "gone", {}, None), "unknown"),
        (KeyError("x"), "unknown"),
        (CallError("broken", "the thread has ended"), "broken"),
    ],
)
def test_an_exception_keeps_its_kind_across_processes(error, kind):
    sent = pickle.loads(pickle.dumps(sort_error(error)))
    arrived = rx.RayTaskError("rollout", "traceback", sent).as_instanceof_cause()
    assert read_error(arrived)[0] == kind
    assert str(error).strip("'") in read_error(arrived)[1]


def test_deaths_are_told_apart():
    assert read_error(rx.ActorDiedError())[0] == "lost"
    preempted = rx.ActorDiedError()
    preempted._preempted = True
    assert read_error(preempted)[0] == "preempted"
    assert read_error(rx.ActorUnavailableError("away", b"x" * 16))[0] == "unavailable"
    assert read_error(rx.ObjectLostError("00", None, ""))[0] == "unavailable"


def test_a_wrong_setting_is_told_from_a_flaky_machine():
    assert sort_load_error(ValueError("no such dtype")).kind == "settings"
    assert sort_load_error(FileNotFoundError("config.json")).kind == "settings"
    for error in (SystemExit(0), AssertionError("x"), NameError("x"), ZeroDivisionError("x"), IndexError("x")):
        assert sort_load_error(error).kind == "settings", error
    for error in (RuntimeError("CUDA out of memory"), MemoryError(), OSError("no space left"), EOFError("cut off")):
        assert sort_load_error(error).kind == "load", error
    assert sort_load_error(OSError("network")).kind == "load"
    unreachable = FileNotFoundError("neither on the hub nor in the cache")
    unreachable.__cause__ = requests.ConnectionError("no route")
    assert sort_load_error(unreachable).kind == "load"
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    assert 'int("x")' in sort_load_error(caught.value).text  # the traceback comes along


def test_a_sentence_of_this_package_comes_without_a_traceback_and_nothing_with_a_secret(monkeypatch):
    with pytest.raises(ValueError, match="format is") as caught:
        Prompts(path="x", format="tsv")
    assert sort_load_error(caught.value).text == str(caught.value)
    monkeypatch.setenv("JUDGE_KEY", "0123-of-this-node")
    for sort in (sort_error, sort_load_error):
        assert "0123-of" not in str(sort(RuntimeError("it sent 0123-of-this-node back")))
    assert "0123-of" not in str(sort_error(DataError("0123-of-this-node")))
