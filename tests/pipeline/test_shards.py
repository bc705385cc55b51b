"""Several drivers on one output: every chunk has one owner, and their summaries are one."""

import pytest

from aisp_ray.files import Output
from aisp_ray.pipeline.chunks import Chunks
from aisp_ray.pipeline.shards import RunShard, merged, snapshots_of, write_summary
from aisp_ray.plan import RunSettings
from aisp_ray.report.notices import run_notices


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_prompt_belongs_to_one_shard(of):
    for count in (0, 1, 7, 8, 95, 100):
        wanted = [[] for _ in range(of)]
        for number in range(of):
            chunks = Chunks(("a",), 8, RunShard(number, of))
            wanted[number] = [ordinal for ordinal in range(count) if chunks.expect(ordinal)]
            assert len(wanted[number]) == RunShard(number, of).count(count, 8)
        assert sorted(ordinal for mine in wanted for ordinal in mine) == list(range(count))


def test_shards_overlap_where_a_chunk_is_in_both():
    shards = [RunShard(number, of) for of in (1, 2, 3, 4) for number in range(of)]
    for one in shards:
        for other in shards:
            assert one.overlaps(other) == any(one.owns(chunk) and other.owns(chunk) for chunk in range(24)), (
                one,
                other,
            )


def test_rows_of_another_shard_are_not_taken_over():
    chunks = Chunks(("a",), 4, RunShard(1, 2))
    assert not chunks.restore({"ordinal": 0, "method": "a"})
    assert chunks.restore({"ordinal": 5, "method": "a"})
    assert [chunks.expect(ordinal) for ordinal in (0, 4, 5)] == [[], ["a"], []]


def test_a_shard_is_read_as_it_is_written():
    assert (RunShard.read("2/4"), str(RunShard(1, 4)), RunShard.read(None)) == (RunShard(1, 4), "2/4", RunShard(0, 1))
    for wrong in ("0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(ValueError, match="it is i/k with 1 <= i <= k"):
            RunSettings(shard=wrong)


def test_snapshots_are_told_apart_by_name(tmp_path):
    output = Output(str(tmp_path))
    assert snapshots_of(output) == {}
    for shard in (RunShard(), RunShard(0, 2), RunShard(1, 2)):
        output.write(shard.snapshot, b"{}")
    for other in ("shares.json", "inflight-x.json", "summary-1-of-2.json"):
        output.write(f"_state/{other}", b"{}")
    assert {str(shard) for shard in snapshots_of(output).values()} == {"1/1", "1/2", "2/2"}


def summary(run_id, rows, mean, **changes):
    spent = {"seconds": 10.0 * rows, "actor_hours": {"policy": 1.0}, "cost": 2.0}
    return {
        **{"run_id": run_id, "config_hash": "h", "exit_code": 0, "in_flight": 4, "rows_of_earlier_runs": 0},
        **{"iterations": 8, "generated_tokens": 100, "data": {"num_prompts": 8}, **spent, "all_starts": spent},
        "methods": {"a": {"rows": rows, "errors": 1, "mean_reward": mean}},
        "retries": {"policy": {"lost": 1}},
        "ended": {"policy": {}},
        "replicas": [{"pool": "policy"}],
        **changes,
    }


def test_summaries_of_shards_add_up():
    found = merged({"1/2": summary("r1", 3, 1.0), "2/2": summary("r2", 5, 4.0, exit_code=3)}, 2)
    assert found["methods"]["a"] == {"rows": 8, "errors": 2, "mean_reward": (2 * 1.0 + 4 * 4.0) / 6}
    assert (found["exit_code"], found["seconds"], found["generated_tokens"], found["cost"]) == (3, 50.0, 200, 4.0)
    assert found["retries"] == {"policy": {"lost": 2}}
    assert [actor["shard"] for actor in found["replicas"]] == ["1/2", "2/2"]
    stopped = {"1/2": summary("r1", 3, 1.0, exit_code=75), "2/2": summary("r2", 5, 4.0, cost=None, exit_code=3)}
    assert (merged(stopped, 2)["exit_code"], merged(stopped, 2)["cost"]) == (75, None)


def test_a_report_names_the_shards_that_have_not_ended(tmp_path):
    output = Output(str(tmp_path))
    runs = [{"run_id": "r1", "shard": "1/3"}, {"run_id": "r2", "shard": "2/3"}]
    write_summary(output, RunShard(0, 3), summary("r1", 3, 1.0))
    write_summary(output, RunShard(1, 3), summary("r2", 3, 1.0, exit_code=75))
    notices = list(run_notices({"manifest.json": {"runs": runs}, "summary.json": output.read_json("summary.json")}))
    assert [words[: len("shard 2/3 has not ended")] for words in notices] == [
        "shard 2/3 has not ended",
        "shard 3/3 has not ended",
    ]
    runs.append({"run_id": "r3", "shard": "3/3"})
    for number, run_id in ((1, "r2"), (2, "r3")):
        write_summary(output, RunShard(number, 3), summary(run_id, 3, 1.0))
    whole = output.read_json("summary.json")
    assert whole["exit_code"] == 0
    assert list(run_notices({"manifest.json": {"runs": runs}, "summary.json": whole})) == []
