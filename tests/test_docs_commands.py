"""Every command that the documentation and the helps show can be given: its keys, names and values are right.

`make docs-commands` runs them.
"""

import importlib
import re
from pathlib import Path

import pytest

from aisp_ray.commands import base
from tools.docs_commands.find import ROOT, DocCommand, commands_of, commands_of_help, files_of, pages
from tools.docs_commands.run import DATA, NOT_RUN, smaller, stand_in, why_not

JOBS = ("eval", "tune", "report", "export", "train_value")
PATTERN = NOT_RUN[-1][0]  # of what is no command as it stands
LATER = {"method=[aisp_tuned,best_of_n]"}  # of presets that the page tells to make first


def module_of(job):
    return importlib.import_module(f"aisp_ray.commands.{job}")


def shown():
    found = [command for path in pages() for command in commands_of(path)]
    for job in JOBS:
        found += commands_of_help(job, module_of(job).COMMAND.about)
    return found


COMMANDS = shown()
OF_JOBS = {command.text: command for command in COMMANDS if command.job and not re.search(PATTERN, command.text)}


@pytest.fixture
def _a_folder_with_the_files_of_the_pages(tmp_path, monkeypatch):
    for path in pages():
        for name, text in files_of(path):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    for name, text in DATA.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "my_scores.py").write_text("def brevity(prompt, responses):\n    return [0.0] * len(responses)\n")
    monkeypatch.chdir(tmp_path)


def test_the_pages_are_full_of_commands():
    assert {command.job for command in COMMANDS} >= set(JOBS)
    assert len(OF_JOBS) > 50
    assert {command.page for command in COMMANDS} >= {"README.md", "docs/cluster.md", "docs/tuning.md", "eval --help"}


@pytest.mark.usefixtures("_a_folder_with_the_files_of_the_pages")
def test_every_command_can_be_given(capsys):
    problems = {}
    for command in OF_JOBS.values():
        if LATER & set(command.arguments):
            continue
        try:
            problem = problem_of(command)
        except ValueError as error:
            problem = str(error)
        if problem:
            problems[f"{command.page}:{command.line} {command.text}"] = problem
    assert not problems


def problem_of(command):
    """What is wrong with a command; None where it can be given."""
    module, words = module_of(command.job), command.arguments
    if "--help" in words:
        return None if module.main(words) == 0 else "its help fails"
    if command.job not in ("eval", "tune"):
        base.read(module.COMMAND, words)
        return None
    plan = module.make_plan(module.read_command(words)[1])
    if why_not(command):
        return None
    return module.check(plan, True) if command.job == "eval" else module.check(plan)


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in COMMANDS:
        if command.words[0] == "make":
            assert command.words[1] in targets, f"{command.page}:{command.line}"


def test_what_is_run_is_smaller_and_otherwise_as_printed(tmp_path):
    job = "ray job submit -- python jobs/eval.py out=/absolute/path limit=8 method.kappa=3"
    assert smaller(DocCommand("p", 1, job), tmp_path) == (
        f"ray job submit -- python jobs/eval.py out={tmp_path}/outputs/absolute limit=1 method.kappa=3 "
        "allow_unequal_budgets=true"
    )
    help_of = DocCommand("p", 1, "python jobs/eval.py --help")
    assert smaller(help_of, tmp_path) == help_of.text
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    report = DocCommand("p", 1, "python jobs/report.py out=[outputs/demo,outputs/other] to=outputs/both")
    assert stand_in(report, tmp_path) == ["outputs/other"]


def test_commands_are_read_as_a_shell_reads_them(tmp_path):
    page = ROOT / "docs" / "results.md"
    found = [each for each in commands_of(page) if "out=outputs/all" in each.text and each.job == "eval"]
    (first, second, third) = found
    assert [each.arguments[0] for each in (first, second, third)] == ["seed=0", "seed=1", "seed=2"]
    assert first.arguments[-1].startswith("method=[best_of_n,")
    assert Path(page).read_text().split("\n")[first.line - 1].startswith("for s in")


def test_an_evaluation_of_another_configuration_has_an_output_of_its_own():
    """`outputs/demo` belongs to the demo: a command that changes what is run and names no output would be refused."""
    free = ("limit=", "run.", "policy.actors=", "train=")
    for command in OF_JOBS.values():
        words = command.arguments
        named = any(word.startswith(("out=", "experiment=", "dry_run=", "print_config=")) for word in words)
        changed = [word for word in words if not word.startswith(free)]
        if command.job == "eval" and not command.inline and "--help" not in words and not named:
            assert not changed, f"{command.page}:{command.line} {command.text}"
