"""What a run finds of earlier ones on its output, and what it counts of it."""

import asyncio
import sys
import threading
from types import SimpleNamespace

import pyarrow as pa
import pytest

from aisp_ray.errors import RefusedError
from aisp_ray.files import Output, to_table
from aisp_ray.pipeline import snapshot
from aisp_ray.pipeline.manifest import note_engines, open_manifest, save_manifest
from aisp_ray.pipeline.snapshot import RunSnapshot
from aisp_ray.pipeline.store import Store
from aisp_ray.plan import Plan, RunSettings
from aisp_ray.results import PARTICLE_SCHEMA, ROW_SCHEMA


def plan(out, limit=None, fingerprint=None, **run):
    data = SimpleNamespace(fingerprint=lambda: {"kind": "made"})
    return Plan(
        methods={"a": None, "b": None},
        policy=None,
        reward=None,
        judges={},
        data=data,
        run=RunSettings(**run),
        seed=0,
        limit=limit,
        out=str(out),
        fingerprint=fingerprint or {"n": 1},
    )


def row(ordinal, method="a", status="ok"):
    reward = float(ordinal) if status == "ok" else None
    return dict.fromkeys(ROW_SCHEMA.names) | {"ordinal": ordinal, "method": method, "status": status, "reward": reward}


@pytest.fixture
def output(tmp_path):
    """Rows 0 to 3 of method a in a file; 2, 3 and 4 in a snapshot that is older than the file."""
    output = Output(str(tmp_path))
    output.write_part(to_table([row(i) for i in range(4)], ROW_SCHEMA), "a", 0)
    hash_ = plan(tmp_path).config_hash
    snapshot.save(output, RunSnapshot(hash_, "r", {}, [row(2), row(3), row(4)], ended=True))
    return output


def test_a_row_in_a_file_and_in_the_snapshot_counts_once(output, tmp_path):
    store = Store(plan(tmp_path), output, 8)
    searches, rows = store.resume("now")
    assert searches == {}
    assert [found["ordinal"] for found in rows] == [4]
    assert (store.num_kept, store.tallies["a"].as_json()) == (4, {"rows": 5, "errors": 0, "mean_reward": 2.0})
    assert store.num_beyond == 0
    store.close()


def test_rows_beyond_a_smaller_limit_stay_and_are_told_apart(output, tmp_path):
    store = Store(plan(tmp_path, limit=2), output, 8)
    store.resume("now")
    assert (store.num_kept, store.num_beyond) == (2, 3)
    assert store.tallies["a"].ok == 5
    store.close()


def test_that_configurations_were_mixed_is_never_forgotten(tmp_path):
    output = Output(str(tmp_path))
    first = plan(tmp_path, fingerprint={"n": 1})
    output.write_json("manifest.json", open_manifest(first, output, "r1"))
    mixed = plan(tmp_path, fingerprint={"n": 2}, on_mismatch="ignore")
    output.write_json("manifest.json", open_manifest(mixed, output, "r2"))
    again = open_manifest(plan(tmp_path, fingerprint={"n": 2}), output, "r3")
    assert again["ignored_differences"] == ["n: 1 there, 2 now"]
    output.write_json("manifest.json", again)
    third = open_manifest(plan(tmp_path, fingerprint={"n": 3}, on_mismatch="ignore"), output, "r4")
    assert third["ignored_differences"] == ["n: 1 there, 2 now", "n: 2 there, 3 now"]
    output.write_json("manifest.json", third)
    clean = open_manifest(plan(tmp_path, fingerprint={"n": 4}, on_mismatch="overwrite"), output, "r5")
    assert "ignored_differences" not in clean


def pool(*engines):
    replicas = [SimpleNamespace(facts={} if engine is None else {"engine": engine}) for engine in engines]
    return SimpleNamespace(gone=replicas[:1], replicas=replicas[1:])


def test_the_manifest_lists_every_engine_of_this_run_and_of_earlier_ones(tmp_path):
    output = Output(str(tmp_path))
    manifest = open_manifest(plan(tmp_path), output, "r1")
    assert note_engines(manifest, pool({"tile": (4, 8)}, {"tile": (4, 8)}, None))
    assert manifest["engine"] == [{"tile": [4, 8]}]
    output.write_json("manifest.json", manifest)
    again = open_manifest(plan(tmp_path), output, "r2")
    assert not note_engines(again, pool(None, {"tile": (4, 8)}))
    assert note_engines(again, pool({"tile": (4, 8)}, {"tile": (2, 2)}))  # one that came later, on another machine
    assert again["engine"] == [{"tile": [4, 8]}, {"tile": [2, 2]}]


def test_two_runs_on_one_output_keep_each_others_records(tmp_path):
    output = Output(str(tmp_path))
    first = open_manifest(plan(tmp_path), output, "r1")
    second = open_manifest(plan(tmp_path), output, "r2")  # before the first has written its own
    second["engine"] = [{"tile": 2}]
    save_manifest(output, first, "r1")
    save_manifest(output, second, "r2")
    first["runs"][-1]["seconds"] = 7.0
    merged = save_manifest(output, {**first, "engine": [{"tile": 1}]}, "r1")
    there = output.read_json("manifest.json")
    assert [(run["run_id"], run.get("seconds")) for run in there["runs"]] == [("r1", 7.0), ("r2", None)]
    assert merged["engine"] == there["engine"] == [{"tile": 1}, {"tile": 2}]


@pytest.mark.parametrize("content", [b'{"methods": [', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, content):
    output = Output(str(tmp_path))
    output.write("manifest.json", content)
    with pytest.raises(RefusedError, match=r"manifest\.json is not valid JSON .*; restore the file"):
        open_manifest(plan(tmp_path), output, "r1")


@pytest.fixture
def without_ray(monkeypatch):
    """Parts are written here, and not by a task of Ray Data."""

    def write_parts(output, tables, folder):
        for part, table in tables.items():
            output.write_part(table, *part, folder)

    here = SimpleNamespace(write_parts=write_parts)
    monkeypatch.setitem(sys.modules, "aisp_ray.pipeline.sink", here)


def finish(store, ordinals):
    """Give the store an ok row of method a for each of these ordinals that it wants, and let it write."""

    async def go():
        wanted = [ordinal for ordinal in ordinals if "a" in store.chunks.expect(ordinal)]
        store.chunks.end()
        for ordinal in wanted:
            store.add(row(ordinal))
        await store.finish()
        return wanted

    wanted = asyncio.run(go())
    store.close()
    return wanted


def particles_of(ordinals):
    """One particle of each prompt, in the second table."""
    return [dict.fromkeys(PARTICLE_SCHEMA.names) | {"ordinal": i, "iteration": 0, "method": "a"} for i in ordinals]


def test_finished_rows_are_in_their_file_before_it_is_complete(tmp_path, without_ray):
    output = Output(str(tmp_path))
    store = Store(plan(tmp_path, particles=True), output, 4)

    async def go():
        for ordinal in range(4):
            store.chunks.expect(ordinal)
        for at, wanted in ((2, [2]), (0, [0, 2])):
            store.add_particles((at, "a"), particles_of([at]))
            store.add(row(at))
            assert not (tmp_path / "rows").exists() or list(statuses(output)) != wanted
            store.flush()
            while store.pending_rows():
                await asyncio.sleep(0.005)
            assert list(statuses(output)) == wanted
            assert output.read_part("a", 0, ["ordinal"], "particles")["ordinal"].to_pylist() == wanted
        # another run replaced the file, with rows of its own: neither loses what the other wrote
        output.write_part(to_table([row(3)], ROW_SCHEMA), "a", 0)
        output.write_part(to_table(particles_of([3]), PARTICLE_SCHEMA), "a", 0, "particles")
        store.add_particles((1, "a"), particles_of([1]))
        store.add(row(1))
        await store.flush_at_the_end()
        assert list(statuses(output)) == [0, 1, 2, 3]
        assert output.read_part("a", 0, ["ordinal"], "particles")["ordinal"].to_pylist() == [0, 1, 2, 3]
        assert len(store.pending_rows()) == 1  # for the snapshot, whatever became of the file

    asyncio.run(go())
    store.close()


def test_complete_parts_are_written_together_and_none_waits_longer_than_a_flush(tmp_path, monkeypatch):
    written = []
    here = SimpleNamespace(write_parts=lambda output, tables, folder: written.append([*tables]))
    monkeypatch.setitem(sys.modules, "aisp_ray.pipeline.sink", here)
    store = Store(plan(tmp_path), Output(str(tmp_path)), 2)

    async def idle():
        while store._writing:
            await asyncio.sleep(0.005)

    async def go():
        for ordinal in range(13):
            store.chunks.expect(ordinal)
        for ordinal in range(6):  # the first complete part finds nobody to wait for
            store.add(row(ordinal))
            await idle()
        assert written == [[("a", 0)]]
        store.flush()
        await idle()
        for ordinal in range(6, 13):
            store.add(row(ordinal))
        store.chunks.end()
        await store.finish()

    asyncio.run(go())
    store.close()
    assert [[chunk for _, chunk in parts] for parts in written] == [[0], [1, 2], [3, 4, 5, 6]]


def test_a_write_that_hangs_costs_no_row_at_the_end(tmp_path, monkeypatch):
    """Ray Data waits for a head that is lost; the row that it was to write is written without it."""
    asked, release = threading.Event(), threading.Event()

    def hang(*_):
        asked.set()
        release.wait(30)

    monkeypatch.setitem(sys.modules, "aisp_ray.pipeline.sink", SimpleNamespace(write_parts=hang))
    output = Output(str(tmp_path))
    store = Store(plan(tmp_path), output, 2)

    async def go():
        for ordinal in range(4):
            store.chunks.expect(ordinal)
        store.chunks.end()
        for ordinal in (0, 1, 2):
            store.add(row(ordinal))
        await asyncio.to_thread(asked.wait, 30)
        await store.flush_at_the_end()
        release.set()

    asyncio.run(go())
    store.close()
    assert (list(statuses(output)), list(statuses(output, 1))) == ([0, 1], [2])


def statuses(output, chunk=0):
    return {
        found["ordinal"]: found["status"] for found in output.read_part("a", chunk, ["ordinal", "status"]).to_pylist()
    }


def test_errors_that_are_retried_with_a_smaller_limit_lose_no_other_row(tmp_path, without_ray):
    output = Output(str(tmp_path))
    before = [row(i, status="error" if i in (1, 20) else "ok") for i in range(24)]
    output.write_part(to_table(before, ROW_SCHEMA), "a", 0)
    store = Store(plan(tmp_path, limit=4, retry_errors=True), output, 32)
    store.resume("now")
    assert (store.num_kept, store.num_beyond, store.tallies["a"].errors) == (3, 20, 1)
    assert finish(store, range(4)) == [1]
    assert statuses(output) == {i: "error" if i == 20 else "ok" for i in range(24)}


def test_a_run_with_a_smaller_limit_keeps_what_another_one_wrote_meanwhile(tmp_path, without_ray):
    output = Output(str(tmp_path))
    short = Store(plan(tmp_path, limit=3, particles=True), output, 32)
    short.resume("now")
    output.write_part(to_table([row(i) for i in range(8)], ROW_SCHEMA), "a", 0)
    particles = particles_of(range(8))
    output.write_part(to_table(particles, PARTICLE_SCHEMA), "a", 0, "particles")
    for ordinal in range(3):
        short.add_particles((ordinal, "a"), [particles[ordinal]])
    assert finish(short, range(3)) == [0, 1, 2]
    assert list(statuses(output)) == list(range(8))
    assert output.read_part("a", 0, ["ordinal"], "particles")["ordinal"].to_pylist() == list(range(8))


def test_a_torn_part_is_named_and_a_foreign_file_is_ignored(output, tmp_path):
    path = tmp_path / "rows" / "part-a-00000000.parquet"
    path.with_name("other.parquet").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-20])
    store = Store(plan(tmp_path), output, 8)
    with pytest.raises(RefusedError, match=r"rows/part-a-00000000\.parquet is not a readable"):
        store.resume("now")
    path.unlink()
    assert [found["ordinal"] for found in store.resume("now")[1]] == [2, 3, 4]
    store.close()


@pytest.mark.parametrize("change", [{"schema_version": 1}, {"schema_version": None}, {"fingerprint": None}])
def test_an_output_of_another_schema_is_refused_before_anything_is_computed(tmp_path, change):
    output = Output(str(tmp_path))
    manifest = open_manifest(plan(tmp_path), output, "r1")
    kept = {name: value for name, value in {**manifest, **change}.items() if value is not None}
    output.write_json("manifest.json", kept)
    with pytest.raises(RefusedError, match="schema_version"):
        open_manifest(plan(tmp_path), output, "r2")


@pytest.mark.parametrize("name", ["part-a-00000009.parquet", "part-other-00000000.parquet", "mine.parquet"])
def test_a_table_of_somebody_else_is_named_at_start(output, tmp_path, name):
    output.write_table(f"rows/{name}", pa.table({"x": [1]}))
    store = Store(plan(tmp_path), output, 8)
    with pytest.raises(RefusedError, match=f"rows/{name} is not a file of an evaluation: it has no column ordinal"):
        store.resume("now")
    store.close()
