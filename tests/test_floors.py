"""Imports point down the floors, rooms do not import their neighbours, and the light modules stay light."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aisp_ray"
FLOORS = {
    0: {"types", "rng", "noise", "weights", "config", "errors", "files", "plan"},
    1: {"controls", "methods", "ledger", "results"},
    2: {"engine", "lm", "policy", "rewards", "metrics", "data", "demo"},
    3: {"cluster", "driver", "worker"},
    4: {"integrations", "pipeline", "report", "commands", "tune"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
ONE_IDEA_A_FILE = ("methods", "rewards", "metrics")  # siblings import `base` and private helpers, never each other
ROOF = ("integrations", "pipeline", "tune", "report", "commands")  # each may import what stands before it
RAY_ALLOWED = {"cluster", "data", "pipeline", "report", "commands", "tune"}


MOST_ROOT_MODULES = 12


def modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def nodes(path):
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imports(path, typed=True):
    """typed: those for the type checker only, too."""
    return tuple(_imports(path, typed))


def _imports(path, typed):
    blocks = [n for n in nodes(path) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    left_out = set() if typed else {id(node) for block in blocks for node in ast.walk(block)}
    for node in nodes(path):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_floor():
    assert {room_of(path) for path in modules()} <= set(FLOOR_OF)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    mine = FLOOR_OF[room_of(path)]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "aisp_ray" and len(parts) > 1 and parts[1] in FLOOR_OF:
            assert FLOOR_OF[parts[1]] <= mine, f"{path.name} (floor {mine}) imports {name}"
        if parts[0] == "ray":
            assert room_of(path) in RAY_ALLOWED, f"{path.name} imports ray"


@pytest.mark.parametrize("room", ROOF)
def test_imports_point_down_inside_the_roof(room):
    above = ROOF[ROOF.index(room) + 1 :]
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports(path):
            assert not name.startswith(tuple(f"aisp_ray.{other}" for other in above)), f"{path.name} imports {name}"


@pytest.mark.parametrize("room", ONE_IDEA_A_FILE)
def test_one_idea_a_file(room):
    for path in (PACKAGE / room).glob("*.py"):
        if path.stem == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] == ["aisp_ray", room] and len(parts) > 2:
                shared = parts[2] == "base" or parts[2].startswith("_") or (PACKAGE / room / parts[2]).is_dir()
                assert shared or parts[2] == path.stem, f"{path.name} imports its sibling {name}"


def test_a_command_line_is_checked_without_torch_or_ray():
    script = (
        "import sys; from aisp_ray.commands.eval import make_plan, read_command;"
        "make_plan(read_command([])[1]);"
        "heavy = [m for m in ('torch', 'ray', 'transformers', 'datasets', 'pandas', 'matplotlib') if m in sys.modules];"
        "sys.exit(','.join(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_the_root_holds_few_modules():
    roots = sorted(path.stem for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
    assert len(roots) <= MOST_ROOT_MODULES, roots


def test_a_class_name_means_one_thing():
    places = {}
    for path in modules():
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice, twice


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions count: a cycle that is put off is a cycle."""
    names = {".".join(("aisp_ray", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in modules()}
    graph = {name: {other for other in imports(path, typed=False) if other in names} for name, path in names.items()}
    done, under_way = set(), []

    def visit(name):
        assert name not in under_way, " -> ".join([*under_way[under_way.index(name) :], name])
        if name in done:
            return
        under_way.append(name)
        for other in sorted(graph[name]):
            visit(other)
        under_way.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)
