"""How long a plan may take: by the newest run of the same models, unknown without one."""

import json
import os

from aisp_ray.pipeline.estimate import earlier_rate

POLICY, REWARD = {"model": "demo:policy"}, {"model": "demo:reward"}


def write_run(folder, at, policy=POLICY, **summary):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": {"policy": policy, "reward": REWARD}}))
    facts = {"tokens_per_second": 100.0, "generated_tokens": 50_000, **summary}
    (folder / "summary.json").write_text(json.dumps(facts))
    os.utime(folder / "summary.json", (at, at))


def test_the_newest_run_of_the_same_models_gives_the_rate(tmp_path):
    assert earlier_rate(str(tmp_path / "none" / "new"), POLICY, REWARD) is None
    write_run(tmp_path / "old", 1)
    write_run(tmp_path / "newer", 2, tokens_per_second=250.0)
    write_run(tmp_path / "other", 3, policy={"model": "another"})
    write_run(tmp_path / "short", 4, generated_tokens=10)
    write_run(tmp_path / "stuck", 5, tokens_per_second=0.0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    rate = earlier_rate(str(tmp_path / "new"), POLICY, REWARD)
    assert (rate.tokens_per_second, rate.out) == (250.0, str(tmp_path / "newer"))
    assert (
        rate.says(30_000, "for 12 prompts")
        == f"at most 2:00 for 12 prompts, at 250 tokens/s, the rate of {tmp_path / 'newer'}"
    )


def test_a_bucket_is_not_listed():
    assert earlier_rate("s3://bucket/runs/new", POLICY, REWARD) is None
