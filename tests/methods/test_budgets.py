from __future__ import annotations

import re

import pytest

from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.args import Args
from aisp_ray.methods.base import check_budgets, fit_budget, fit_budgets, planned_cost
from aisp_ray.methods.best_of_n import BestOfN


def test_equal_budgets_pass_and_unequal_ones_are_named():
    assert check_budgets({"aisp": Aisp(), "best_of_n": BestOfN(n=32, kappa=8)}) is None
    sentence = check_budgets({"aisp": Aisp(), "best_of_n": BestOfN(kappa=4)})
    assert sentence == "the methods have unequal budgets in samples per prompt: aisp 256, best_of_n 64"


def test_a_token_at_a_time_costs_tokens_and_not_whole_responses():
    methods = {"args": Args(k=8, max_new_tokens=32), "aisp": Aisp(n=16, kappa=16)}
    assert check_budgets(methods, "reward_calls") is None
    assert planned_cost(methods["args"], 128)["generated_tokens"] == 256
    assert planned_cost(methods["aisp"], 128)["generated_tokens"] == 256 * 128


def test_a_budget_sets_the_number_of_rounds():
    assert fit_budget(Aisp(n=16, kappa=16), "samples", 64).kappa == 4
    assert fit_budget(Aisp(n=16, kappa=1), "generated_tokens", 16 * 100 * 3, 100).kappa == 3
    assert fit_budget(Args(k=2, max_new_tokens=8), "samples", 16) == Args(k=2, max_new_tokens=8)
    assert fit_budget(Aisp(n=16, kappa=16, final_draws=8), "samples", 72).kappa == 4


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(ValueError, match="no multiple of one iteration of Aisp, 16"):
        fit_budget(Aisp(), "samples", 100)
    with pytest.raises(ValueError, match="has no key that fits it"):
        fit_budget(Args(), "samples", 100)
    with pytest.raises(ValueError, match="samples, reward_calls, generated_tokens"):
        check_budgets({}, "dollars")


@pytest.mark.parametrize("budget", [64, "samples:64", "reward_calls:64", "generated_tokens:4096"])
def test_one_budget_for_all_methods(budget):
    methods = {"aisp": Aisp(), "best_of_n": BestOfN(n=32)}
    fitted = fit_budgets(methods, budget, 64)
    assert {name: method.kappa for name, method in fitted.items()} == {"aisp": 4, "best_of_n": 2}
    assert fit_budgets(methods, None, 64) == methods


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("64", "write budget=256"),
        ("dollars:64", "dollars:64"),
        ("samples:1.5", "whole number"),
        (0, "above 0"),
        ([64], "whole number"),
        (40, "method.aisp: a budget of 40 samples is no multiple"),
    ],
)
def test_a_wrong_budget_says_what_to_write(budget, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        fit_budgets({"aisp": Aisp()}, budget, 64)
