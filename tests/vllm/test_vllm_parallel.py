"""A model split over two processes (tensor parallel 2 by gloo): the same tokens, every law included."""

import pytest

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.controls.score_log import ScoreEntry, ScoreLog
from aisp_ray.engine.base import StopRules
from aisp_ray.engine.vllm.load import build_vllm_engine
from aisp_ray.engine.vllm.setup import VllmSettings
from aisp_ray.types import Sampling
from tests.engine.tiny_models import request
from tests.vllm.conftest import letters
from tests.vllm.small_models import CONTEXT, saved
from tests.vllm.test_vllm_engine import ALL, MEAN, differing


@pytest.mark.timeout(600)
def test_two_processes_give_the_tokens_of_one(tmp_path):
    model, folder = saved("llama", tmp_path)
    engine = build_vllm_engine(VllmSettings(folder, "float32", CONTEXT, slots=8, ranks=2), letters)
    try:
        assert engine.fingerprint["tensor_parallel"] == 2
        drawn = ScoreEntry(((5, 6, 7, 8), (9, 10, 11)), (1.0, -1.0))
        laws = [
            OpenLoop(10, sigma=1.0),
            OpenLoop(10, mean=MEAN, sigma=0.6),
            OpenLoop(10, mean=ScoreLog((drawn,), 2.0)),
        ]
        requests = [
            request(length=3 + 9 * k, seed=k, tokens=12 + k, control=law, want=ALL, stop=StopRules((7, 50), ("qz",)))
            for k, law in enumerate(laws)
        ]
        requests.append(request(n=6, tokens=12, sampling=Sampling(temperature=1.0, top_p=0.9)))
        count, wrong = differing(model, engine, requests)
        assert not wrong, f"{len(wrong)} of {count}"
    finally:
        engine.close()
