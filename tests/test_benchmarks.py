"""What the benchmarks read off a run: prefixes by iteration, and rewards within a budget."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_common_prefixes_are_of_pairs_of_the_best_before_and_of_winners(monkeypatch):
    explained = script("explained", monkeypatch)
    first = [(1, 2, 3), (1, 2, 4), (5, 2)], [0.0, 2.0, 1.0]
    second = [(1, 2, 4, 9), (1, 7), (1, 2)], [math.nan, 0.5, 1.5]
    found = explained.prefixes([first, second])
    assert found["pairs"] == pytest.approx([(2 + 0 + 0) / 3, (1 + 2 + 1) / 3])
    assert found["leader"][1] == pytest.approx((3 + 1 + 2) / 3)  # (1, 2, 4), the best so far
    assert found["winners"][1] == 2  # (1, 2) and (1, 2, 4)
    assert found["length"] == pytest.approx([8 / 3, 8 / 3])
    assert math.isnan(found["leader"][0])


def test_a_search_is_read_off_within_its_budget_and_a_schedule_only_at_its_end(monkeypatch):
    methods = script("methods", monkeypatch)

    def curve(tokens, best, anytime, samples):
        rows = {0: {"num_samples": samples, "num_samples_seen": [samples]}}
        return methods.Curve({0: np.array(tokens)}, {0: np.array(best)}, rows, anytime)

    one = curve([10, 30, 60], [1.0, 2.0, 3.0], True, 3)
    assert [one.at("tokens", b)[0] for b in (5, 10, 59, 60, 99)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert [one.at("samples", b)[0] for b in (1, 2, 3)] == [1.0, 2.0, 3.0]
    runs = [curve([40], [1.0], False, 64), curve([80], [2.0], False, 128), curve([160], [3.0], False, 256)]
    chosen = [methods.chosen_for(runs, "blockwise", "tokens", budget) for budget in (10, 77, 100, 500)]
    assert [each.at("tokens", 10)[0] for each in chosen] == [1.0, 2.0, 2.0, 3.0]  # 80 is within 5 % of 77
    assert methods.chosen_for(runs, "aisp_commit", "samples", 128) is runs[1]


def test_every_run_of_the_method_tables_is_a_command_that_is_accepted(monkeypatch):
    from aisp_ray.commands import eval as evaluation

    methods, asked = script("methods", monkeypatch), []
    monkeypatch.setattr(evaluation, "evaluate", lambda plan, *_: asked.append(plan) or 0)
    methods.run_all(Path("/tmp/nowhere"), 1, 256, ["limit=2"])
    assert len(asked) == len(methods.calls())
    main = asked[0].methods
    assert {method.num_samples for method in main.values()} == {256}


def test_a_shared_budget_and_a_stop_stay_within_the_draws(monkeypatch):
    budgets = script("budgets", monkeypatch)
    rewards = np.random.default_rng(0).normal(size=(5, 64)) * np.arange(1, 6)[:, None]
    spent = budgets.shared(rewards, 8, 120)
    assert spent.sum() <= 120
    assert spent.min() >= 8
    assert spent.max() > 8
    assert set(budgets.stopped(rewards, 8, accept_at=0.45)) <= set(range(24, 65, 8))
    assert budgets.best(rewards, np.array([1, 2, 3, 4, 5])).tolist() == [rewards[i, : i + 1].max() for i in range(5)]


def test_the_method_tables_are_read_off_the_files_of_the_runs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "report"))
    from made_rows import made_particles, made_row, write_output

    methods, samples = script("methods", monkeypatch), 64
    for name, keys in methods.calls(samples).items():
        rows, particles = [], []
        for key, value in keys.items():
            method, at = key.split(".")[1], key.split(".")[2]
            n, kappa = (int(value), 2) if at == "n" else (16, int(value))
            for ordinal in range(3):
                drawn = made_particles(method, ordinal, 0, kappa, n)
                best = max(one["reward"] for one in drawn if one["reward"] is not None)
                spent = {"num_generated_tokens": 10 * len(drawn), "reward": best}
                rows.append({**made_row(method, ordinal, 0, kappa, n), **spent})
                particles += drawn
        write_output(tmp_path / name, rows, particles=particles)
    found = methods.curves_of(tmp_path, samples)
    by_samples, by_tokens = (list(methods.table([found], unit, samples)) for unit in ("samples", "tokens"))
    lines = {line.split("`")[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in by_samples[2:]}
    assert set(lines) == {*methods.ANYTIME, *methods.SAVING, *methods.SCHEDULED, *methods.BLOCKS}
    firsts = [[one["reward"] for one in made_particles("aisp", o, 0, 4, 16)][:16] for o in range(3)]
    first = np.mean([max(r for r in rewards if r is not None) for rewards in firsts])
    assert lines["aisp"][1] == f"{first:.3f}"
    assert lines["aisp"][5] == "640"
    assert lines["blockwise"][5] == "1,280"  # 64 responses begun, two blocks each
    assert lines["best_of_n_tuned"][4] == "+0.000 ± 0.000"
    assert by_tokens[0].startswith("| equal tokens |")
    assert len(by_tokens) == len(by_samples)


@pytest.mark.parametrize("cell", ["hh", "shp", "reward_b", "gemma"])
def test_every_cell_of_the_study_is_a_command_that_is_accepted(cell, tmp_path, monkeypatch):
    from aisp_ray.commands import eval as evaluation

    study, asked = script("study", monkeypatch), []
    monkeypatch.setattr(evaluation, "evaluate", lambda plan, *_: asked.append(plan) or 0)
    monkeypatch.setattr(study, "table", lambda outs: outs)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    there = ["policy=demo", "reward=demo", "judges=[demo_judge]"]  # `make real` may not have been run
    study.main([cell, str(tmp_path / "out"), *there, f"data.path={rows}", "seed=1", "limit=3"])
    (plan,) = asked
    assert (plan.seed, plan.limit) == (1, 3)
    assert {method.num_samples for method in plan.methods.values()} == {64}
    assert set(plan.methods) == set(study.CELLS[cell][0])


def test_the_study_pairs_prompts_and_averages_seeds(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    study = script("study", monkeypatch)
    for seed, gain in enumerate((0.5, 1.5)):
        rows = [
            {
                "ordinal": ordinal, "method": method, "status": "ok", "reward": reward, "finish_reason": "length",
                "num_generated_tokens": 1000, "judge_rewards": [reward / 2], "reward_mean": [0.0, 1.0],
                "reward_best": [reward - 1, reward],
            }
            for ordinal in range(3)
            for method, reward in (("best_of_n", 1.0 + ordinal), ("best_of_n_tuned", 2.0), ("aisp", 2.0 + gain))
        ]  # fmt: skip
        rows.append(dict(rows[0], ordinal=9, status="error", reward=None))
        (tmp_path / f"seed{seed}" / "rows").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"seed{seed}" / "rows" / "part.parquet")
    head, _, _, *lines = study.table([str(tmp_path / "seed0"), str(tmp_path / "seed1")])
    assert head.strip() == "3 prompts, 2 seeds"
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:]] for line in lines}
    assert cells["aisp"][2:5] == ["+1.00 ± 0.00", "1.50", "+0.50 ± 0.00"]
    assert cells["aisp"][0] == "2.00 / 2.00 / 3.00"
    assert cells["aisp"][6:8] == ["100%", "0.00 to 1.00"]
    assert cells["best_of_n_tuned"][2] == "-"
