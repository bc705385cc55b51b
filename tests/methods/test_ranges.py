"""What every method says alike about settings that are out of range."""

from __future__ import annotations

import dataclasses
import re
from functools import cache

import pytest

from aisp_ray import config

WORDS = {
    ("n", 0): "n is 0; ",
    ("kappa", 0): "kappa is 0; give at least 1 iteration",
    ("horizon", 0): "horizon is 0; ",
    ("top_p", 0.0): "top_p is 0.0; it is a probability mass in (0, 1]",
    ("top_p", 1.5): "top_p is 1.5; it is a probability mass in (0, 1]",
    ("temperature", -1.0): "temperature is -1.0; ",
}


@cache
def built(name):
    values = config.read_choice("method", name)
    if values["_target_"].endswith("ReControl"):
        values.setdefault("value", "value.safetensors")
    return config.build(values, f"method.{name}")


CASES = [
    (name, key, value)
    for name in config.choices("method")
    for key, value in WORDS
    if key in {field.name for field in dataclasses.fields(built(name))}
]


@pytest.mark.parametrize(("name", "key", "value"), CASES)
def test_a_value_out_of_range_is_named(name, key, value):
    with pytest.raises(ValueError, match=f"^{re.escape(WORDS[key, value])}"):
        dataclasses.replace(built(name), **{key: value})


@pytest.mark.parametrize("name", ["aisp", "aisp_plus", "aisp_population", "re_control"])
def test_a_nucleus_of_a_greedy_decode_is_an_error(name):
    greedy = {"temperature": 0.0, "top_p": 0.9, **({"sigma": 0.5} if name == "aisp_population" else {})}
    if name == "re_control":
        greedy |= {"n": 1, "kappa": 1}
    with pytest.raises(ValueError, match=r"^top_p has no effect at temperature=0; set temperature too$"):
        dataclasses.replace(built(name), **greedy)
