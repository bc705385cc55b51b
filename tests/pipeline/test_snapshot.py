"""A snapshot gives back exactly what was in it."""

import json
import math
import sys

import pytest

from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.files import Output
from aisp_ray.ledger import Progress, Trace
from aisp_ray.methods.aisp import AispState
from aisp_ray.methods.base import Candidate
from aisp_ray.pipeline import snapshot
from aisp_ray.pipeline.codec import encode

STATE = AispState(
    "fake/test/00000003",
    seed=1,
    iteration=2,
    best=Candidate("text", 0.1 + 0.2, 1, 3, "stop", (1, 2), -1.5),
    log=WeightLog((WeightEntry(0, (1 / 3, 2 / 3), (5, 6), 0.7071),)),
)
TRACE = Trace(
    reward_mean=(math.nan, 1e-300), ess=(1.5, math.nan), num_samples_seen=(4, 8), extra={"x": (1.0, math.nan)}
)

ROW = {"ordinal": 1, "method": "aisp", "status": "ok", "reward": 0.1}


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    output = Output(str(tmp_path))
    row = {"ordinal": 1, "method": "aisp", "status": "ok", "reward": 0.1, "ess": [None, 2.0]}
    particles = {(3, "aisp"): [{"iteration": 0, "particle": 0, "reward": 1 / 3}]}
    searches = {(3, "aisp"): Progress(STATE, TRACE)}
    snapshot.save(output, snapshot.RunSnapshot("hash", "run", searches, [row], particles, ended=True))
    assert snapshot.load(output, "another") is None
    back = snapshot.load(output, "hash")
    assert back.searches[3, "aisp"].state == STATE
    assert repr(back.searches[3, "aisp"].trace) == repr(TRACE)  # NaN is NaN
    assert (back.rows, dict(back.particles)) == ([row], particles)
    assert (back.config_hash, back.run_id, back.ended) == ("hash", "run", True)
    assert back.time > 0


BROKEN = [
    b"{",
    b"\xff\xfe",
    b"[]",
    b'"text"',
    b"{}",
    b'{"config_hash": "h"}',
    b'{"config_hash": "h", "version": 0}',
    b'{"config_hash": "h", "version": 1, "searches": 3}',
    b'{"config_hash": "h", "version": 1, "searches": [], "run_id": "r", "rows": []}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_snapshot_that_cannot_be_read_is_left_with_a_notice(tmp_path, caplog, content):
    output = Output(str(tmp_path))
    assert snapshot.load(output, "h") is None
    assert not caplog.records
    output.write(snapshot.SNAPSHOT, content)
    assert snapshot.load(output, "h") is None
    assert "inflight.json cannot be read: what was under way starts anew" in caplog.text


FOREIGN = [
    {"rows": None},
    {"rows": {"ordinal": 1}},
    {"rows": [None]},
    {"rows": [{"method": "aisp", "status": "ok"}]},
    {"rows": [{**ROW, "ordinal": None}]},
    {"rows": [{**ROW, "ordinal": "1"}]},
    {"rows": [{**ROW, "reward": "high"}]},
    {"rows": [{**ROW, "status": None}]},
    {"particles": None},
    {"particles": [[3, "aisp", None]]},
    {"particles": [[3, "aisp", [{"particle": 0}]]]},
    {"particles": [[[3], "aisp", []]]},
    {"searches": None},
    {"time": None},
    {"time": "yesterday"},
]


@pytest.mark.parametrize("damage", FOREIGN, ids=repr)
def test_a_snapshot_that_holds_other_values_is_left_with_a_notice(tmp_path, caplog, damage):
    output = Output(str(tmp_path))
    snapshot.save(output, snapshot.RunSnapshot("h", rows=[ROW]))
    value = json.loads(output.read(snapshot.SNAPSHOT))
    output.write(snapshot.SNAPSHOT, json.dumps(value | damage).encode())
    assert snapshot.load(output, "h") is None
    assert "inflight.json cannot be read: what was under way starts anew" in caplog.text


@pytest.mark.parametrize(
    "search", [7, {"@": "aisp_ray.ledger:Progress", "state": 7, "trace": 7}, {"@": "aisp_ray.x:Y"}]
)
@pytest.mark.parametrize("key", [(3, "aisp"), ("3", "aisp"), (None, None)])
def test_searches_that_are_none_start_anew_and_rows_stay(tmp_path, key, search):
    output = Output(str(tmp_path))
    snapshot.save(output, snapshot.RunSnapshot("h", rows=[ROW]))
    value = json.loads(output.read(snapshot.SNAPSHOT)) | {"searches": [[*key, search]]}
    output.write(snapshot.SNAPSHOT, json.dumps(value).encode())
    back = snapshot.load(output, "h")
    assert (back.searches, back.rows) == ({}, [ROW])


@pytest.mark.parametrize("kind", ["antigravity:fly", "subprocess:Popen", "aisp_ray.files:Output", "os:system", "x"])
def test_nothing_is_imported_or_made_for_a_snapshot_but_dataclasses_of_this_package(tmp_path, kind):
    output = Output(str(tmp_path))
    snapshot.save(output, snapshot.RunSnapshot("h", searches={(3, "aisp"): Progress(STATE, TRACE)}))
    text = output.read(snapshot.SNAPSHOT).decode().replace(encode(STATE)["@"], kind)
    output.write(snapshot.SNAPSHOT, text.encode())
    sys.modules.pop("antigravity", None)
    assert snapshot.load(output, "h").searches == {}
    assert "antigravity" not in sys.modules


def test_searches_of_changed_code_start_anew_and_rows_stay(tmp_path):
    output = Output(str(tmp_path))
    saved = snapshot.RunSnapshot("h", "r", {(3, "aisp"): Progress(STATE, TRACE)}, [ROW])
    snapshot.save(output, saved)
    text = output.read(snapshot.SNAPSHOT).decode().replace("AispState", "NoSuchState")
    output.write(snapshot.SNAPSHOT, text.encode())
    back = snapshot.load(output, "h")
    assert (back.searches, len(back.rows)) == ({}, 1)
