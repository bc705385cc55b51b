"""A cluster whose CPUs another job holds: it is said, before and while the run waits, and the run goes on by itself."""

import threading
import time

import pytest

from aisp_ray.pipeline import preflight, run
from tests.plans import make_plan

pytestmark = pytest.mark.ray


def test_cpus_that_another_job_holds_are_named_until_they_are_free(cluster, prompts, tmp_path, capsys, monkeypatch):
    import ray

    monkeypatch.setattr("aisp_ray.pipeline.waiting._PATIENCE", 0.5)
    total = ray.cluster_resources()["CPU"]
    other = ray.remote(num_cpus=total - 0.4)(type("Other", (), {"ready": lambda self: True})).remote()
    assert ray.get(other.ready.remote())
    settings = {"out": str(tmp_path / "out"), "path": prompts(4), "methods": ["best_of_n"], "kappa": 1}
    plan = make_plan({**settings, "run": {"progress_seconds": 0.2}})  # actors of 0.2 and 0.2 CPUs: none is left to read
    said = []
    assert preflight(plan, said.append) == []
    assert f"warning: {total - 0.4:g} of {total:g} CPUs are held by others" in said[0]
    seen, words = [], f"waiting for 0.25 CPU to read the data; {total - 0.4:g} of {total:g} are held by others"

    def free_them_once_it_is_said():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            seen.append(capsys.readouterr().err)
            if words in "".join(seen):
                break
            time.sleep(0.1)
        ray.kill(other)

    helper = threading.Thread(target=free_them_once_it_is_said)
    helper.start()
    assert run(plan) == 0
    helper.join()
    assert words in "".join(seen)
