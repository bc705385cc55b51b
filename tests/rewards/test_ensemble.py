"""Several reward models as one."""

import math

import pytest

from aisp_ray.config import build
from aisp_ray.plan import describe
from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.callable import CallableReward
from aisp_ray.rewards.ensemble import Ensemble
from aisp_ray.types import Prompt

PROMPT = Prompt("p", 0, "d", "Hi.")


def length(prompt, responses):
    return [float(len(response)) for response in responses]


def vowels(prompt, responses):
    return [math.nan if "?" in response else float(sum(c in "aeiou" for c in response)) for response in responses]


MEMBERS = (CallableReward(target="test_ensemble:length"), CallableReward(target="test_ensemble:vowels"))


def rewards(**settings):
    scorer = Ensemble(members=MEMBERS, **settings).load("cpu")
    return scorer.score([ScoreRequest(PROMPT, ("aeiou", "rhythm"))])[0].rewards


def test_combinations():
    assert rewards() == (5.0, 3.0)
    assert rewards(combine="min") == (5.0, 0.0)
    assert rewards(combine="lcb") == (5.0, 0.0)  # mean 3, standard deviation 3
    assert rewards(combine="lcb", coefficient=0.5) == (5.0, 1.5)
    assert rewards(shifts=(1.0, 0.0), scales=(2.0, 5.0)) == (1.5, 1.25)


@pytest.mark.parametrize("combine", ["mean", "min", "lcb"])
def test_one_member_without_a_reward_leaves_none(combine):
    scores = Ensemble(members=MEMBERS, combine=combine).load("cpu").score([ScoreRequest(PROMPT, ("a?", "b"))])[0]
    assert math.isnan(scores.rewards[0])
    assert "particle 0" in scores.errors[0]
    assert scores.errors[1] is None


def broken(prompt, responses):
    raise KeyError("no such word")


def test_the_traceback_of_a_member_comes_through():
    members = (*MEMBERS, CallableReward(target="test_ensemble:broken"))
    scores = Ensemble(members=members).load("cpu").score([ScoreRequest(PROMPT, ("a", "b"))])[0]
    assert 'raise KeyError("no such word")' in scores.traceback
    assert Ensemble(members=MEMBERS).load("cpu").score([ScoreRequest(PROMPT, ("a",))])[0].traceback is None


def test_members_are_names_or_mappings():
    named = build({"_target_": "aisp_ray.rewards.ensemble.Ensemble", "members": ["demo", "demo_gold"]}, "reward")
    assert [type(spec).__name__ for spec in named.specs] == ["SequenceClassifier", "DemoGold"]
    mapping = {"_target_": "aisp_ray.rewards.callable.CallableReward", "target": "math:sqrt"}
    assert Ensemble(members=(mapping, mapping)).specs[1].target == "math:sqrt"


def test_pinning_pins_the_members():
    named = Ensemble(members=("demo", "demo_gold")).pinned()
    assert [type(member).__name__ for member in named.members] == ["SequenceClassifier", "DemoGold"]


def test_what_is_wrong_with_a_member_names_its_key():
    mapping = {"_target_": "aisp_ray.rewards.callable.CallableReward", "target": "math:pi"}
    assert Ensemble(members=("demo", mapping)).check("judges.both") == [
        "judges.both.members[1].target=math:pi is not something to call"
    ]


def test_members_from_the_hub_are_pinned_to_their_commits(monkeypatch):
    from aisp_ray.lm import hub

    monkeypatch.setattr(hub, "look_up", lambda name, *rest, **more: f"commit of {name}")
    mapping = {"_target_": "aisp_ray.rewards.sequence_classifier.SequenceClassifier", "model": "owner/reward"}
    pinned = Ensemble(members=("demo", mapping)).pinned()
    assert [member.revision for member in pinned.specs] == [None, "commit of owner/reward"]
    assert describe(pinned)["members"][1]["revision"] == "commit of owner/reward"  # what the manifest keeps


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"members": MEMBERS[:1]}, "at least 2"),
        ({"combine": "max"}, "one of mean, min, lcb"),
        ({"coefficient": 2.0}, "only matters to combine=lcb"),
        ({"scales": (1.0,)}, "1 numbers for 2 members"),
        ({"scales": (1.0, 0.0)}, "above 0"),
        ({"members": ("demo", "no_such_reward")}, "no such choice"),
        ({"members": ("demo", {"model": "x"})}, "_target_"),
        ({"members": ("demo", {"_target_": "aisp_ray.methods.best_of_n.BestOfN"})}, "no reward model"),
    ],
)
def test_wrong_settings_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        Ensemble(**{"members": MEMBERS, **settings})
