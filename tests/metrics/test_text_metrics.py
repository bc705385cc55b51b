"""Measures of single responses: values worked out by hand, and what is missing is NaN."""

from __future__ import annotations

import importlib
import math
import pkgutil

import numpy as np
import pytest

import aisp_ray.metrics
from aisp_ray.metrics._words import words
from aisp_ray.metrics.distinct import Distinct
from aisp_ray.metrics.diversity import Diversity
from aisp_ray.metrics.length import Length


def text_metrics() -> list:
    """Every settings class of aisp_ray/metrics that has a `compute` over responses, at its defaults."""
    found = []
    for module in pkgutil.iter_modules(aisp_ray.metrics.__path__):
        loaded = importlib.import_module(f"aisp_ray.metrics.{module.name}")
        own = [value for value in vars(loaded).values() if getattr(value, "__module__", "") == loaded.__name__]
        found += [cls() for cls in own if hasattr(cls, "compute") and not getattr(cls, "_is_protocol", False)]
    return found


def test_words_keep_inner_marks_and_split_the_others():
    assert words("It's well-known, isn't it?") == ["It's", "well-known", ",", "isn't", "it", "?"]
    assert words(None) == words("") == words("  \n ") == []


def test_diversity_of_a_repeated_phrase_by_hand():
    # a b a b a: bigrams 2 of 4, trigrams 2 of 3, 4-grams 2 of 2
    value = Diversity().compute([""], ["a b a b a"])[0]
    assert value == pytest.approx(2 / 4 * 2 / 3 * 2 / 2)


def test_the_published_form_has_one_more_in_the_denominator():
    value = Diversity(plus_one=True).compute([""], ["a b a b a"])[0]
    assert value == pytest.approx(2 / 5 * 2 / 4 * 2 / 3)


def test_a_response_without_repeats_has_diversity_one_at_any_length():
    texts = [" ".join(map(str, range(n))) for n in (4, 40, 400)]
    assert Diversity().compute([""] * 3, texts).tolist() == [1.0, 1.0, 1.0]
    published = Diversity(plus_one=True).compute([""] * 3, texts)
    assert np.all(np.diff(published) > 0)
    assert published[0] == pytest.approx(3 / 4 * 2 / 3 * 1 / 2)


def test_a_short_response_has_no_diversity_and_the_published_form_says_zero():
    assert math.isnan(Diversity().compute([""], ["no way home"])[0])
    assert Diversity(plus_one=True).compute([""], ["no way home"])[0] == 0.0


def test_distinct_counts_ngrams_of_its_own_response():
    assert Distinct(n=1).compute([""], ["a b a"])[0] == pytest.approx(2 / 3)
    assert Distinct(n=2).compute([""], ["a b a b"])[0] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least 1 word"):
        Distinct(n=0)


def test_length_is_in_words():
    assert Length().compute(["", ""], ["One, two.", None])[0] == 4


def test_every_text_metric_says_nan_for_an_empty_text_and_a_missing_one():
    metrics = text_metrics()
    assert {type(metric).__name__ for metric in metrics} >= {"Diversity", "Distinct", "Length"}
    for metric in metrics:
        values = metric.compute(["a question?"] * 3, ["", None, " \n"])
        assert values.dtype == np.float64, metric
        assert np.isnan(values).all(), metric
