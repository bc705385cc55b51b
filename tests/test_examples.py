"""What the README and examples/ show runs, and shows what it prints."""

import ast
import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def printed(output):
    """The text of one output of a cell, without progress bars."""
    if output["output_type"] == "stream":
        return "".join(output["text"]) if output["name"] == "stdout" else ""
    return "".join(output["data"]["text/plain"]) + "\n"


def run_cell(source, names):
    """What a cell prints, its last expression's value included, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(tree, "cell", "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        if value is not None:
            print(repr(value))
    return shown.getvalue()


def plain(text):
    return re.sub(r"\s+", "", text)


def test_the_quickstart_notebook_prints_what_it_shows():
    names = {"__name__": "notebook"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            shown = "".join(printed(output) for output in cell["outputs"])
            assert plain(run_cell("".join(cell["source"]), names)) == plain(shown), "".join(cell["source"])


def test_the_readme_call_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    (call,) = [block for block in blocks if "best_responses" in block]
    assert run_cell(call, {"__name__": "notebook"}).strip()


def test_the_engine_call_of_its_page_runs(monkeypatch):
    (call, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "engine.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(ROOT)
    lines = run_cell(call, {"__name__": "notebook"}).strip().split("\n")
    assert len(lines) == 8
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_what_an_example_imports_of_ours_is_there(path):
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, each.name) for node in found if node.module.startswith("aisp_ray") for each in node.names]
    for module, name in ours:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_model_prompts_scorer", "own_method", "preference_pairs"])
def test_an_example_runs(name, tmp_path):
    words = [str(tmp_path)] if name == "preference_pairs" else []
    command = [sys.executable, ROOT / "examples" / f"{name}.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_two_settings_are_compared_by_the_script(tmp_path):
    command = ["bash", ROOT / "examples" / "compare_two_settings.sh", str(tmp_path)]
    environment = {"PYTHON": sys.executable, "LIMIT": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "index.html").is_file()
