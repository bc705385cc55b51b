import json
import math

import pytest

from aisp_ray.controls.weight_log import WeightEntry, WeightLog
from aisp_ray.ledger import Progress, Trace
from aisp_ray.methods.aisp import AispState
from aisp_ray.methods.base import Candidate
from aisp_ray.pipeline.codec import decode, encode


def test_a_search_survives_json():
    log = WeightLog((WeightEntry(0, (0.1, 0.9), (3, 4), 0.5),))
    state = AispState("d/test/1", 3, 1, False, Candidate("hé\n", 1.25, 0, 1, "stop", (1, 2)), log=log)
    progress = Progress(
        state, Trace(reward_mean=(0.5,), ess=(math.nan,), extra={"step": (1.0,)}, num_samples_seen=(2,))
    )
    back = decode(json.loads(json.dumps(encode(progress), allow_nan=False)))
    assert back.state.log == log
    assert back.state.best.token_ids == (1, 2)
    assert math.isnan(back.trace.ess[0])
    assert back.trace.extra == {"step": (1.0,)}


def test_what_cannot_be_saved_is_named():
    with pytest.raises(TypeError, match="cannot snapshot a object"):
        encode(object())


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="another version"):
        decode({"@": "aisp_ray.ledger:Trace", "no_such_field": 1})
