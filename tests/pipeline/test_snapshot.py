"""A snapshot gives back exactly what was in it."""

import json
import math

from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.files import Output
from aisp_ray.ledger import Progress, Trace
from aisp_ray.methods.aisp import AispState
from aisp_ray.methods.base import Candidate
from aisp_ray.pipeline import snapshot

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


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    output = Output(str(tmp_path))
    row = {"ordinal": 1, "method": "aisp", "reward": 0.1, "ess": [None, 2.0]}
    particles = {(3, "aisp"): [{"particle": 0, "reward": 1 / 3}]}
    searches = {(3, "aisp"): Progress(STATE, TRACE)}
    snapshot.save(output, snapshot.Snapshot("hash", "run", searches, [row], particles, ended=True))
    back = snapshot.load(output)
    assert back.searches[3, "aisp"].state == STATE
    assert repr(back.searches[3, "aisp"].trace) == repr(TRACE)  # NaN is NaN
    assert (back.rows, dict(back.particles)) == ([row], particles)
    assert (back.config_hash, back.run_id, back.ended) == ("hash", "run", True)
    assert back.time > 0


def test_no_snapshot_and_one_of_another_version_are_none(tmp_path):
    output = Output(str(tmp_path))
    assert snapshot.load(output) is None
    output.write(snapshot.SNAPSHOT, json.dumps({"version": 0}).encode())
    assert snapshot.load(output) is None


def test_searches_of_changed_code_start_anew_and_rows_stay(tmp_path):
    output = Output(str(tmp_path))
    saved = snapshot.Snapshot("h", "r", {(3, "aisp"): Progress(STATE, TRACE)}, [{"ordinal": 1, "method": "aisp"}])
    snapshot.save(output, saved)
    text = output.read(snapshot.SNAPSHOT).decode().replace("AispState", "NoSuchState")
    output.write(snapshot.SNAPSHOT, text.encode())
    back = snapshot.load(output)
    assert (back.searches, len(back.rows)) == ({}, 1)
