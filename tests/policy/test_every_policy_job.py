"""Each YAML of conf/policy through the evaluation job, from prompts to rows, with a small checkpoint."""

import json

import pytest
from tiny_checkpoints import MAKERS, make_checkpoint

from aisp_ray.commands import eval as cli

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def _session():
    from aisp_ray.cluster.session import quiet_environment

    quiet_environment()
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False
        )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_session")
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_policy_runs_through_the_job(name, tmp_path):
    import pyarrow.parquet as pq

    words = [
        f"policy={name}",
        f"policy.model={make_checkpoint(name, tmp_path)}",
        "policy.dtype=float32",
        "policy.num_gpus=0",
        "policy.max_new_tokens=12",
        "policy.slots=8",
        "reward=demo_gold",
        "judges=[]",
        "method=[aisp,best_of_n]",
        "method.n=4",
        "method.kappa=2",
        "data=demo_hh",
        "limit=4",
        "report=false",
        f"out={tmp_path / 'out'}",
    ]
    assert cli.main(words) == 0
    rows = pq.read_table(tmp_path / "out" / "rows").to_pylist()
    assert len(rows) == 8
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["num_samples"] == 8 and row["num_prompt_tokens"] > 0 for row in rows)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["engine"][0]["engine"] == "fast"
    assert manifest["first_prompt"]["policy"]
