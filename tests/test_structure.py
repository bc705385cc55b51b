"""Short functions, few parameters, every room packaged, every YAML built."""

import ast
import dataclasses
import tomllib
from pathlib import Path

import pytest

from aisp_ray import config

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("aisp_ray", "jobs", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
BUILT_GROUPS = ("method", "policy", "reward", "data", "run")
YAMLS = [(group, name) for group in BUILT_GROUPS for name in config.choices(group)]


def functions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path):
    for node in functions(path):
        length = node.end_lineno - node.lineno + 1
        assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


def test_every_package_folder_is_packaged():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "aisp_ray").rglob("*.py")}
    assert found | {"aisp_ray.conf"} == listed


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_every_yaml_builds_and_is_described(group, name):
    assert config.choices(group)[name], f"conf/{group}/{name}.yaml starts with no description"
    values = config.read_choice(group, name)
    values.pop("_judges_", None)
    problem = ""
    try:
        config.build(values, f"{group}.{name}")
    except config.ConfigError as error:
        problem = str(error)
    assert not problem or "must be set" in problem  # a generic preset may leave a key to the command line


@pytest.mark.parametrize(("group", "name"), [pair for pair in YAMLS if pair[0] in ("policy", "reward")])
def test_every_model_refuses_a_place_that_cannot_be(group, name):
    """Whatever checks a model's settings add, they make those of its placement too."""
    values = {**config.read_choice(group, name), "actors": [0, 1]}
    values.pop("_judges_", None)
    for field in dataclasses.fields(config.schema_of(values["_target_"], name)):
        if config._required(field):
            values.setdefault(field.name, "x")
    with pytest.raises(config.ConfigError, match=r"actors is \[0, 1\]"):
        config.build(values, group)


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_every_key_has_a_meaning_in_the_help(group, name):
    cls = config.schema_of(config.read_choice(group, name)["_target_"], name)
    meaning = config.comments(cls)
    assert [field.name for field in dataclasses.fields(cls) if field.init and not meaning.get(field.name)] == []
