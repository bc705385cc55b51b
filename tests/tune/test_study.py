"""A whole search over fake models: files, resuming, held-out confirmation, the written preset."""

import asyncio
import json
import os
import signal

import pyarrow.parquet as pq
import pytest
from tune_world import PEAK, FakePolicy, make, prompts, read_preset, run

from aisp_ray import config
from aisp_ray.commands.eval import make_plan as make_evaluation
from aisp_ray.commands.eval import read_command as read_evaluation
from aisp_ray.errors import RefusedError
from aisp_ray.files import Output
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.pipeline import exits
from aisp_ray.pipeline.manifest import open_manifest
from aisp_ray.pipeline.progress import Screen
from aisp_ray.report.notices import run_notices
from aisp_ray.report.searches import read_compared, read_search
from aisp_ray.report.write import read_report, report_text
from aisp_ray.tune.run import read_prompts
from aisp_ray.tune.run import run as run_plan
from aisp_ray.tune.store import Evaluations
from aisp_ray.tune.table import choosable, ranked


def trials_of(out):
    table = pq.read_table(out / "trials.parquet")
    return table.drop_columns(["policy_seconds", "reward_seconds", "wall_seconds"]).to_pylist()


def test_a_search_leaves_a_table_a_summary_and_a_preset_that_builds(tmp_path):
    code, _ = run(make(tmp_path, "trials=20"))
    assert code == 0
    rows = trials_of(tmp_path)
    assert len(rows) == 21
    assert rows[0]["trial"] == 0
    assert rows[0]["gain"] == 0.0
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: row["value"])
    assert best["value_low"] < best["value"] < best["value_high"]
    assert best["num_samples"] == 16 * 4
    method = read_preset(tmp_path / "best.yaml")
    assert method.temperature == best["key.temperature"] == pytest.approx(PEAK, rel=0.25)
    assert (method.n, method.kappa, method.top_p) == (2, 2, 1.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"]["trial"] == best["trial"]
    assert summary["heldout"]["gain"]["count"] == 8
    assert summary["tuning"]["gain"]["mean"] == pytest.approx(best["gain"])
    assert summary["cost"]["evaluations"] == sum(row["num_prompts"] for row in rows)
    assert "held-out prompts" in report_text(read_report(str(tmp_path)))


def test_a_killed_search_goes_on_to_the_same_trials(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    _, undisturbed = run(make(whole, "trials=12", "stop=halving", "batch=8"))
    spent = 0
    for most in (50, 70, 90):
        plan, policy = make(broken, "trials=12", "stop=halving", "batch=8"), FakePolicy(most)
        assert run(plan, policy)[0] == 1
        spent += most
    code, last = run(make(broken, "trials=12", "stop=halving", "batch=8"))
    assert code == 0
    assert trials_of(broken) == trials_of(whole)
    # each break loses at most the rollouts of the searches that were in flight
    assert spent + last.num_rollouts <= undisturbed.num_rollouts + 3 * (5 * 2 + 1)
    assert last.num_rollouts < undisturbed.num_rollouts


def test_a_finished_search_costs_nothing_the_second_time(tmp_path):
    run(make(tmp_path, "trials=6"))
    first = trials_of(tmp_path)
    _, again = run(make(tmp_path, "trials=6"))
    assert again.num_rollouts == 0
    assert trials_of(tmp_path) == first


def test_more_prompts_pay_only_for_the_new_ones(tmp_path):
    grid = "tune.keys={temperature: [0.3, 0.6, 0.9]}"
    _, first = run(make(tmp_path, grid, "search=grid", "limit=4"))
    _, more = run(make(tmp_path, grid, "search=grid", "limit=6"))
    settings, rounds = 4, 2  # the preset's temperature is not in the grid
    assert first.num_rollouts == rounds * (settings * 4 + 2 * 8)
    assert more.num_rollouts == rounds * settings * 2


def test_trials_do_not_depend_on_how_many_searches_are_in_flight(tmp_path):
    for in_flight in (1, 32):
        run(make(tmp_path / str(in_flight), "trials=10"), in_flight=in_flight)
    assert trials_of(tmp_path / "1") == trials_of(tmp_path / "32")


def test_another_seed_is_refused_with_the_difference_and_overwritten_on_request(tmp_path, capsys):
    run(make(tmp_path, "trials=2", "limit=4"))
    assert run(make(tmp_path, "trials=2", "limit=4", "seed=1"))[0] == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
    run(make(tmp_path, "trials=2", "limit=4", "seed=1", "run.on_mismatch=overwrite"))
    store = Evaluations(Output(str(tmp_path)))
    store.open(make(tmp_path, "seed=1").fingerprint)
    assert {row["seed"] for row in store.rows.values()} == {1}


def test_searches_and_evaluations_keep_out_of_each_other_s_outputs(tmp_path, capsys):
    run(make(tmp_path / "searched", "trials=2", "limit=4"))
    plan = make_evaluation(read_evaluation([f"out={tmp_path}/searched", "limit=1"])[1])
    with pytest.raises(RefusedError, match="holds a search of settings"):
        open_manifest(plan, Output(plan.out), "run")
    plan = make_evaluation(read_evaluation([f"out={tmp_path}/evaluated", "limit=1"])[1])
    output = Output(plan.out)
    output.write_json("manifest.json", open_manifest(plan, output, "run"))
    assert run(make(tmp_path / "evaluated", "trials=2", "limit=4", "run.on_mismatch=overwrite"))[0] == 2
    assert "holds an evaluation" in capsys.readouterr().err


def test_two_searches_in_one_output_do_not_overwrite_each_other(tmp_path):
    plan = make(tmp_path, "trials=2", "limit=4")
    stores = [Evaluations(Output(str(tmp_path))) for _ in range(2)]
    run(make(tmp_path / "other", "trials=2", "limit=4"))
    source = Evaluations(Output(str(tmp_path / "other")))
    source.open(plan.fingerprint)
    rows = list(source.rows.values())
    for store, row in zip(stores, rows, strict=False):
        store.open(plan.fingerprint)
        store.add(row["setting"], {}, {name: row[name] for name in row if name not in ("setting", "settings")})
        store.flush()
    again = Evaluations(Output(str(tmp_path)))
    again.open(plan.fingerprint)
    assert len(again.rows) == 2


def test_a_judge_can_be_the_objective(tmp_path):
    judged = make(tmp_path, "trials=4", "limit=4", "judges=[demo_gold]", "objective=judge.demo_gold")
    run(judged)
    store = Evaluations(Output(str(tmp_path)))
    store.open(judged.fingerprint)
    assert all(row["judge_rewards"] == [pytest.approx(row["reward"] + 10.0)] for row in store.rows.values())
    assert trials_of(tmp_path)[0]["value"] > 5.0


def test_prompts_without_a_reward_are_errors_and_in_no_mean(tmp_path):
    tuning = [*prompts(3), *prompts(1, "broken", "hopeless")]
    code, _ = run(make(tmp_path, "trials=2", "limit=4"), tuning=tuning)
    assert code == 3
    rows = trials_of(tmp_path)
    assert rows[0]["num_failed"] == 1
    assert rows[0]["num_prompts"] == 4


def test_a_search_without_held_out_prompts_still_writes_its_preset(tmp_path):
    code, _ = run(make(tmp_path, "trials=2", "heldout_limit=0"), heldout=[])
    assert code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["heldout"] is None
    read_preset(tmp_path / "best.yaml")


def test_the_best_setting_can_be_saved_as_a_preset(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.tune.run.preset_path", lambda name: tmp_path / f"{name}.yaml")
    run(make(tmp_path / "out", "trials=2", "limit=4", "save_as=tuned"))
    text = (tmp_path / "tuned.yaml").read_text()
    assert text == (tmp_path / "out" / "best.yaml").read_text()
    assert text.startswith("# best_of_n with temperature=")


def test_columns_are_documented_and_keys_are_numbers(tmp_path):
    run(make(tmp_path, "trials=2", "limit=4"))
    schema = pq.read_schema(tmp_path / "trials.parquet")
    assert str(schema.field("key.temperature").type) == "double"
    assert schema.metadata[b"aisp_ray.trials"] == b"1"
    assert b"doc" in schema.field("gain").metadata


def test_a_space_of_texts_and_switches_is_searched_too(tmp_path):
    space = "tune.keys={select: [best], temperature: [0.5, 0.7]}"
    run(make(tmp_path, space, "search=grid", "limit=4"))
    assert {row["key.select"] for row in trials_of(tmp_path)} == {'"best"'}
    assert config.choices("tune")


def test_a_preset_that_is_the_best_is_said_to_be(tmp_path):
    run(make(tmp_path, "tune.keys={temperature: [0.2, 2.5]}", "tune.set={n: 2, top_p: 1.0}", "search=grid", "limit=4"))
    assert "No setting did better than the preset." in report_text(read_report(str(tmp_path)))
    assert read_preset(tmp_path / "best.yaml").temperature == 1.0


def test_one_id_for_a_tuning_and_a_held_out_prompt_is_refused_with_the_key_to_change(tmp_path, capsys):
    paths = [tmp_path / folder / "prompts.jsonl" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("".join(json.dumps({"prompt": f"{path.parent.name} {i}"}) + "\n" for i in range(4)))
    words = ["data=prompts", f"data.path={paths[0]}", "heldout=prompts", f"heldout.path={paths[1]}", "limit=4"]
    assert run_plan(make(tmp_path / "out", *words, "local=true")) == 2
    assert "heldout.name=prompts_heldout" in capsys.readouterr().err
    tuning, heldout = read_prompts(make(tmp_path / "out", *words, "heldout.name=other"), Screen())
    assert len({prompt.prompt_id for prompt in (*tuning, *heldout)}) == 8


def test_a_row_of_another_text_under_the_same_id_is_not_taken(tmp_path):
    grid = ("tune.keys={temperature: [0.5]}", "search=grid", "limit=4")
    _, first = run(make(tmp_path, *grid))
    _, edited = run(make(tmp_path, *grid), tuning=prompts(4, text="another question"))
    assert first.num_rollouts - edited.num_rollouts == 2 * 2 * 8  # two settings, two rounds, the held-out prompts


def with_row(row, **changes):
    return {name: row[name] for name in row if name not in ("setting", "settings")} | changes


@pytest.mark.parametrize("value_first", [True, False])
def test_an_error_never_stands_before_a_value(tmp_path, value_first):
    plan = make(tmp_path, "tune.keys={temperature: [0.5]}", "search=grid", "limit=4")
    run(plan)
    before = Evaluations(Output(plan.out))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    before.open(plan.fingerprint, about={"prompts": manifest["prompts"]})
    later = Evaluations(Output(plan.out))
    later._name = "z" if value_first else "0"  # parts are read in the order of names
    for row in before.rows.values():
        later.add(row["setting"], {}, with_row(row, status="error", error="no", reward=None, response=None))
    later.flush()
    again = Evaluations(Output(plan.out))
    again.open(plan.fingerprint, about={"prompts": manifest["prompts"]})
    assert {row["status"] for row in again.rows.values()} == {"ok"}
    rows = read_compared([read_search(plan.out)])
    assert set(rows["status"].to_pylist()) == {"ok"}
    assert rows.num_rows == 2 * 8


def test_what_is_mixed_stays_said(tmp_path):
    words = ("tune.keys={temperature: [0.5]}", "search=grid", "limit=4", "seed=1")
    run(make(tmp_path, *words[:-1]))
    for last in ("run.on_mismatch=ignore", "run.on_mismatch=refuse"):
        run(make(tmp_path, *words, last))
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert manifest["ignored_differences"] == ["seed: 0 there, 1 now"]
        (said,) = run_notices({"manifest.json": manifest})
        assert "are mixed in it" in said
    run(make(tmp_path, *words[:-1], "run.on_mismatch=overwrite"))
    assert "ignored_differences" not in json.loads((tmp_path / "manifest.json").read_text())


@pytest.mark.parametrize(("text", "said"), [('{"finger', "is not valid JSON"), ("[]", "is not a JSON object")])
def test_a_broken_manifest_is_refused_in_a_sentence(tmp_path, capsys, text, said):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(8)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(text)
    words = ("data=prompts", f"data.path={path}", "limit=4", "heldout=null", "heldout_limit=4", "local=true")
    assert run_plan(make(tmp_path / "out", *words)) == 2
    assert said in capsys.readouterr().err


def test_a_preset_without_a_value_ends_the_search_in_a_sentence(tmp_path, capsys):
    code, policy = run(make(tmp_path, "trials=4", "limit=4"), tuning=prompts(4, "broken", "hopeless"))
    assert code == 1
    assert policy.num_rollouts == 2 * 4  # of the preset alone
    assert "the preset has no finite reward on any of 4 tuning prompts" in capsys.readouterr().err


def test_a_setting_that_the_method_cannot_run_has_no_value_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    tell = BestOfN.tell

    def brittle(self, state, rollouts, scores):
        return 1 / 0 if self.temperature > 2 else tell(self, state, rollouts, scores)

    monkeypatch.setattr(BestOfN, "tell", brittle)
    code, _ = run(make(tmp_path, "tune.keys={temperature: [0.5, 3.0]}", "search=grid", "limit=12"))
    assert code == 3
    rows = trials_of(tmp_path)
    assert [row["num_failed"] for row in rows] == [0, 0, 12]
    assert rows[2]["value"] is None
    assert "no value on prompts where the preset has one: 2;" in capsys.readouterr().err
    assert json.loads((tmp_path / "summary.json").read_text())["best"]["settings"] == {"temperature": 0.5}


def test_rows_that_failed_on_more_than_the_preset_stand_behind_those_that_can_be_chosen():
    kept = {"state": "complete", "num_prompts": 4}
    rows = [kept | {"trial": i, "value": v, "num_failed": f} for i, (v, f) in enumerate([(2.0, 1), (9.0, 2), (3.0, 0)])]
    assert [row["trial"] for row in ranked(rows)] == [2, 0, 1]
    assert [row["trial"] for row in choosable(rows)] == [0, 2]


def test_any_failure_is_said_with_exit_code_1_and_what_was_measured_stays(tmp_path, capsys):
    class Broken(FakePolicy):
        async def rollout(self, prompt, proposal, seed):
            if self.num_rollouts >= 20:
                raise RuntimeError("the fan has stopped")
            return await super().rollout(prompt, proposal, seed)

    words = ("tune.keys={temperature: [0.5]}", "search=grid", "limit=8")
    assert run(make(tmp_path, *words), Broken())[0] == 1
    shown = capsys.readouterr().err
    assert "error: the fan has stopped" in shown
    assert "the same command resumes" in shown
    _, rest = run(make(tmp_path, *words))
    assert rest.num_rollouts < 2 * 2 * 16


def test_a_signal_ends_the_search_also_where_nothing_can_be_written(tmp_path, capsys, monkeypatch):
    class Signalled(FakePolicy):
        async def rollout(self, prompt, proposal, seed):
            if self.num_rollouts >= 20:
                monkeypatch.setattr(Evaluations, "flush", full)
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(20)
            return await super().rollout(prompt, proposal, seed)

    def full(self):
        raise OSError("the disk is full")

    monkeypatch.setattr(exits, "_EXIT_SECONDS", 1e6)  # or else this very process would be ended
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert run(make(tmp_path, "trials=4"), Signalled(), in_flight=1)[0] == 143
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    shown = capsys.readouterr().err
    assert "stopped by a signal" in shown
    assert "could not be written: the disk is full" in shown
