"""Coherence against a plain loop with a small encoder made here."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from aisp_ray.metrics.coherence import Coherence

WORDS = ["where", "is", "my", "order", "the", "refund", "comes", "today", "please", "wait"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


PROMPTS = ["where is my order", "where is the refund please", "my order"]
RESPONSES = ["the order comes today", "where is the refund please", "wait please wait please the refund comes today"]


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_cosines_are_those_of_one_text_at_a_time(encoder, pooling):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    def vector(text: str):
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"))
        states = out.last_hidden_state[0]
        return {"pooler": out.pooler_output[0], "cls": states[0], "mean": states.mean(0)}[pooling]

    plain = [
        float(torch.nn.functional.cosine_similarity(vector(p), vector(r), dim=0))
        for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    for batch_size in (1, 64):
        found = Coherence(encoder=encoder, pooling=pooling, batch_size=batch_size).compute(PROMPTS, RESPONSES)
        np.testing.assert_allclose(found, plain, atol=1e-5)
    assert found[1] == pytest.approx(1.0, abs=1e-5)


def test_texts_are_cut_at_the_limit(encoder):
    long = " ".join(["order"] * 50)
    cut = " ".join(["order"] * 6)
    metric = Coherence(encoder=encoder, max_tokens=8)  # with [CLS] and [SEP]
    assert metric.compute([long], ["refund"])[0] == pytest.approx(metric.compute([cut], ["refund"])[0], abs=1e-6)


def test_empty_texts_are_missing_and_the_others_are_not(encoder):
    found = Coherence(encoder=encoder).compute(["order", "", "order"], [None, "refund", "refund"])
    assert math.isnan(found[0])
    assert math.isnan(found[1])
    assert math.isfinite(found[2])


def test_an_encoder_that_is_not_there_gives_missing_values_and_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = Coherence(encoder=str(tmp_path / "nothing")).compute(["order"], ["refund"])
    assert np.isnan(found).all()
    assert "could not be loaded" in caplog.text


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooler, cls, mean"):
        Coherence(pooling="max")
