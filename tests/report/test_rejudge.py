"""Judges after the run: final responses, and the best response after every iteration."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from made_rows import made_particles, made_row, write_output

from aisp_ray.commands.report import main
from aisp_ray.report.rejudge import Rejudging, read_again, rejudge
from aisp_ray.report.rows import read_json, read_rows
from aisp_ray.report.write import make_report
from aisp_ray.rewards.base import RewardSpec, Scorer
from aisp_ray.types import Scores

METHODS = ("best_of_n", "aisp")
SEEN: list = []


@dataclass(frozen=True, kw_only=True)
class CountWords(RewardSpec, Scorer):
    """Words of the response, minus those of the baseline's where it is asked to compare."""

    compare_with: str | None = None

    def load(self, device: str):
        return self

    def score(self, requests):
        SEEN.extend(requests)
        found = []
        for request in requests:
            other = request.prompt.meta.get(self.compare_with or "", "")
            values = [float(len(text.split()) - len(other.split())) for text in request.responses]
            pairs = zip(request.responses, values, strict=True)
            found.append(Scores(tuple(math.nan if "cancel" in text else value for text, value in pairs)))
        return found


def searched(method: str, ordinal: int) -> tuple[dict, list[dict]]:
    """A row whose traces and response are those of its particles."""
    particles = made_particles(method, ordinal, 0)
    row, best, trace = made_row(method, ordinal, 0), None, []
    for k in range(8):
        for drawn in particles[4 * k : 4 * k + 4]:
            if drawn["reward"] is not None and (best is None or drawn["reward"] > best["reward"]):
                best = drawn
        trace.append(best["reward"])
    return row | {"reward_best": trace, "response": best["response"], "reward": best["reward"]}, particles


@pytest.fixture
def out(tmp_path) -> str:
    made = [searched(method, ordinal) for method in METHODS for ordinal in range(5)]
    folder = write_output(
        tmp_path / "out", [row for row, _ in made], {}, [one for _, particles in made for one in particles]
    )
    return str(folder)


def again(out: str, **keys):
    how = Rejudging(judges={"count": CountWords(**keys.pop("judge", {}))}, **keys)
    return rejudge(read_rows(out), {out: read_json(out, "manifest.json")}, how).to_pylist()


def words(text: str) -> float | None:
    return None if "cancel" in text else float(len(text.split()))


def test_final_responses_get_the_judge_s_score_beside_the_run_s_own(out):
    for row in again(out):
        assert row["judge_names"] == ["second_opinion", "gold", "count"]
        assert row["judge_rewards"][2] == words(row["response"])
        assert row["judge_rewards"][0] == searched(row["method"], row["ordinal"])[0]["judge_rewards"][0]


def test_a_judge_that_compares_gets_the_baseline_s_response(out):
    rows = {(row["method"], row["ordinal"]): row for row in again(out, judge={"compare_with": "baseline"})}
    for (_, ordinal), row in rows.items():
        mine, other = row["response"], rows["best_of_n", ordinal]["response"]
        plain = None if "cancel" in mine else float(len(mine.split()) - len(other.split()))
        assert row["judge_rewards"][2] == plain


def test_curves_follow_what_the_search_would_have_returned(out):
    for row in again(out, curves=True):
        best, plain = None, []
        particles = made_particles(row["method"], row["ordinal"], 0)
        for k in range(8):
            for drawn in particles[4 * k : 4 * k + 4]:
                if drawn["reward"] is not None and (best is None or drawn["reward"] > best["reward"]):
                    best = drawn
            plain.append(words(best["response"]))
        assert json.loads(row["judged"])["count"] == plain
        assert plain[-1] == row["judge_rewards"][2]


def test_each_response_is_scored_once_with_its_dialogue(out):
    SEEN.clear()
    again(out, curves=True)
    assert len(SEEN) == 5
    for request in SEEN:
        assert len(request.responses) == len(set(request.responses))
        assert [turn.role for turn in request.prompt.messages] == ["user"]
        assert request.prompt.messages[0].content == request.prompt.text


def test_the_view_is_in_the_report(out, monkeypatch):
    from aisp_ray.report.figures.evaluation import over_optimisation

    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", [over_optimisation])
    report = make_report(out, rejudging=Rejudging(judges={"count": CountWords()}, curves=True))
    assert (Path(report.to) / "figures" / "over_optimisation_count.svg").exists()
    assert report.records[1].judges["count"].count > 0
    curve = report.sections[0].curves["judged count"]["aisp"]
    assert curve.values[-1].mean == pytest.approx(report.records[1].judges["count"].mean)


def test_the_run_s_data_are_read_again_for_what_rows_do_not_hold(tmp_path):
    prompts = [{"prompt": made_row("aisp", i, 0)["prompt"], "answer": f"answer {i}"} for i in range(3)]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    spec = {"_target_": "aisp_ray.data.prompts.Prompts", "path": str(data), "name": "made", "split": "test"}
    rows = [made_row("aisp", i, 0) for i in range(3)]
    out = str(write_output(tmp_path / "out", rows, {"data": {**spec, "keep": ["answer"]}}))
    SEEN.clear()
    again(out)
    assert [request.prompt.meta for request in SEEN] == [{"answer": f"answer {i}"} for i in range(3)]


def test_data_are_read_again_up_to_the_last_prompt_that_has_a_row(tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(500)))
    spec = {"_target_": "aisp_ray.data.prompts.Prompts", "path": str(data), "name": "made", "split": "test"}
    assert list(read_again({"config": {"data": spec}}, 3)) == [f"made/test/{i:08d}" for i in range(3)]
    asked = []
    rows = [made_row("aisp", i, 0) for i in (0, 4)]
    out = str(write_output(tmp_path / "out", rows, {"data": spec}))
    with mock.patch("aisp_ray.data.stream.rows_locally", lambda spec, limit: asked.append(limit) or iter(())):
        again(out)
    assert asked == [5]


def test_curves_need_particles_and_judges(tmp_path, capsys):
    out = str(write_output(tmp_path / "out", [made_row("aisp", 0, 0)], {}))
    assert main([f"out={out}", "judges=[demo_gold]", "judge_curves=true"]) == 2
    assert "run.particles=true" in capsys.readouterr().err
    assert main([f"out={out}", "judge_curves=true"]) == 2
    assert "without judges" in capsys.readouterr().err


class Failing(RewardSpec, Scorer):
    """Scores no response, or those of some prompts only."""

    def __init__(self, but: tuple[int, ...] = ()):
        object.__setattr__(self, "but", but)

    def load(self, device: str):
        return self

    def score(self, requests):
        known = [request.prompt.ordinal in self.but for request in requests]
        texts = [len(request.responses) for request in requests]
        return [
            Scores((1.0,) * n) if ok else Scores((math.nan,) * n, ("the endpoint said 401",) * n)
            for ok, n in zip(known, texts, strict=True)
        ]


def test_a_judge_that_scores_nothing_is_one_sentence(out, monkeypatch, capsys):
    monkeypatch.setattr("aisp_ray.rewards.demo_gold.DemoGoldScorer.score", lambda self, found: Failing().score(found))
    assert main([f"out={out}", "judges=[demo_gold]"]) == 2
    told = capsys.readouterr().err
    assert "judges=demo_gold: none of the 10 responses got a score; the first: the endpoint said 401" in told


def test_a_judge_that_scores_a_part_is_a_notice(out, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    report = make_report(out, rejudging=Rejudging(judges={"count": Failing(but=(0, 3))}))
    sentence = "judge count: 6 of 10 responses have no score; the first: the endpoint said 401"
    assert sentence in report.notices
    assert sentence in Path(report.page).read_text(encoding="utf-8")
    assert report.records[0].judges["count"].count == 2
    assert any(curve.known for curve in report.sections[0].curves["kl"].values()), "`extra` keeps its traces"


def test_a_judge_of_the_run_that_failed_is_a_notice(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    rows = [made_row(method, i, 0) | {"judge_rewards": [None, 1.0]} for method in METHODS for i in range(3)]
    rows[1]["extra"] = json.dumps({"judge_errors": {"second_opinion": "no key is set"}})
    report = make_report(str(write_output(tmp_path / "out", rows, {})))
    assert "judge second_opinion: 6 of 6 responses have no score; the first: no key is set" in report.notices
    assert not any(text.startswith("judge gold") for text in report.notices)


def test_a_judge_that_succeeds_later_takes_the_earlier_reason_away(tmp_path):
    row = made_row("aisp", 0, 0) | {"response": "one two", "extra": json.dumps({"judge_errors": {"count": "401"}})}
    (found,) = again(str(write_output(tmp_path / "out", [row, made_row("aisp", 1, 0)], {})))[:1]
    assert found["judge_rewards"][2] == 2.0
    assert found["extra"] is None


def test_a_comparing_judge_finds_the_baseline_in_another_output(tmp_path):
    outs = {
        method: str(write_output(tmp_path / method, [made_row(method, i, 0) for i in range(5)], {}))
        for method in METHODS
    }
    other = [made_row("best_of_n", i, 1) | {"response": "of another seed"} for i in range(5)]
    outs["seed1"] = str(write_output(tmp_path / "seed1", other, {}))
    how = Rejudging(judges={"count": CountWords(compare_with="baseline")})
    rows = rejudge(
        read_rows([outs[name] for name in ("seed1", "aisp", "best_of_n")]), {out: {} for out in outs.values()}, how
    )
    for row in rows.to_pylist():
        if row["method"] == "aisp":
            mine, base = row["response"], made_row("best_of_n", row["ordinal"], 0)["response"]
            plain = None if "cancel" in mine else float(len(mine.split()) - len(base.split()))
            assert row["judge_rewards"][2] == plain


def test_a_judge_that_breaks_is_one_sentence(out, capsys, monkeypatch):
    def broken(self, requests):
        raise RuntimeError("the endpoint is gone")

    monkeypatch.setattr("aisp_ray.rewards.demo_gold.DemoGoldScorer.score", broken)
    assert main([f"out={out}", "judges=[demo_gold]"]) == 2
    assert "judges=demo_gold: the endpoint is gone" in capsys.readouterr().err
