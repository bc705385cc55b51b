"""The command: one sentence for what is wrong, nothing heavy before that."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aisp_ray.commands.base import help_text
from aisp_ray.commands.tune import COMMAND, check, main, make_plan, pin, read_command
from aisp_ray.files import differences

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seach=grid"], 'Did you mean "search"'),
        (["search=gird"], 'Did you mean "grid"'),
        (["stop=halfing"], 'Did you mean "halving"'),
        (["trials=3", "search=grid"], "has no effect"),
        (["trials=0"], "give at least 1"),
        (["limit=many"], "limit='many': it must be a whole number"),
        (["method=aisp"], "the space names the method"),
        (["tune=any"], "method must be set"),
        (["tune=alhpa"], 'Did you mean "alpha"'),
        (["tune.keys.sigma=3"], "give a list of values or"),
        (["tune=any", "tune.method=best_of_n", "tune.keys.tau=[1]"], "has no such key"),
        (["data.pat=x"], 'Did you mean "path"'),
        (["heldout=null", "heldout.name=x"], "has no effect: heldout is null"),
        (["objective=judge.gold"], "no such measure"),
        (["objective=reward@3"], "give reward@4 or more"),
        (["save_as=aisp"], "was not written by a search"),
        (["save_as=../x"], "letters, digits and underscores"),
        (["tune.samples=7", "tune=alpha"], "no multiple of one iteration"),
        (["--help-me=1"], "without dashes"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(words, said, capsys):
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.startswith("error: ")


def test_a_dry_run_says_what_it_would_cost(capsys):
    words = ["tune=sigma", "search=grid", "limit=10", "heldout_limit=5", "method.aisp.sigma=0.5", "dry_run=true"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "the preset aisp and 6 settings of sigma by grid" in shown
    assert "at most 80 evaluations, 5,120 samples, 327,680 tokens" in shown
    assert "time: unknown" in shown or "time: at most" in shown


def test_the_configuration_can_be_shown(capsys):
    assert main(["print_config=true", "method.aisp.horizon=32"]) == 0
    shown = capsys.readouterr().out
    assert "horizon: 32" in shown
    assert "demo_tuning" in shown


def test_what_comes_from_the_hub_is_pinned(monkeypatch):
    monkeypatch.setattr("aisp_ray.lm.hub.look_up", lambda name, *_, **__: f"commit of {name}")
    words = ["policy.model=owner/model", "reward=skywork_v2_qwen3_0_6b", "reward.model=owner/reward"]
    plan = pin(make_plan(read_command(words)[1]))
    assert plan.policy.revision == "commit of owner/model"
    assert plan.fingerprint["policy"]["revision"] == "commit of owner/model"
    assert plan.fingerprint["reward"]["revision"] == "commit of owner/reward"


def test_a_relative_output_of_a_ray_job_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["out=outputs/here", "local=true"]) == 2
    assert "out=outputs/here is relative" in capsys.readouterr().err


def test_help_lists_every_key_and_space(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("heldout_limit", "first_rung", "sigma_lambda", "one_at_a_time", "judge.NAME"):
        assert word in shown


def test_every_command_that_is_shown_can_be_given():
    shown = help_text(COMMAND) + (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    commands = [
        shlex.split(line.split("   ")[0], comments=True) for line in re.findall(r"jobs/tune\.py (tune.*)", shown)
    ]
    commands += [shlex.split(words) for words in re.findall(r"`(tune=any [^`]*)`", shown)]
    commands = [words for words in commands if "--help" not in words]
    assert len(commands) > 8
    for words in commands:
        assert check(make_plan(read_command(words)[1])) == [], words


def test_a_command_is_checked_without_torch_ray_or_optuna():
    script = (
        "import sys; from aisp_ray.commands.tune import check, make_plan, read_command;"
        "assert not check(make_plan(read_command([])[1]));"
        "heavy = [m for m in ('torch', 'ray', 'transformers', 'datasets', 'pandas', 'optuna') if m in sys.modules];"
        "sys.exit(','.join(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_an_edited_data_file_is_another_search(tmp_path):
    paths = {"data": tmp_path / "tuning.jsonl", "heldout": tmp_path / "heldout.jsonl"}
    words = [word for name, path in paths.items() for word in (f"{name}=prompts", f"{name}.path={path}")]
    for path in paths.values():
        path.write_text('{"prompt": "a question"}\n')
    before = pin(make_plan(read_command(words)[1])).fingerprint
    assert pin(make_plan(read_command(words)[1])).fingerprint == before
    for name, path in paths.items():
        path.write_text('{"prompt": "A question"}\n')
        after = pin(make_plan(read_command(words)[1])).fingerprint
        assert any(line.startswith(f"{name}_content.files") for line in differences(before, after))
    assert pin(make_plan(read_command(["heldout=null"])[1])).fingerprint["heldout_content"] is None


def test_a_range_with_whole_ends_is_of_numbers_where_the_key_is_one():
    plan = make_plan(read_command(["tune=any", "tune.method=aisp", "tune.keys={sigma: {low: 0, high: 2}}"])[1])
    (axis,) = plan.workbench.space.axes()
    assert not axis.whole
