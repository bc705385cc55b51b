"""The documentation builds as a site, strictly; links to files outside docs/ lead to its pages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("mkdocs", reason="pip install 'aisp-ray[docs]'")


def build(folder):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_the_site_builds_and_a_dead_link_fails_it(tmp_path):
    for name in ("aisp_ray", "docs", "examples", "tools", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="examples.html#quickstart"' in start
    assert 'src="figures/loop.svg"' in start
    calls = (tmp_path / "site" / "api" / "library.html").read_text(encoding="utf-8")
    assert "of the response; NaN where the search failed" in calls  # the comment behind a field
    page = tmp_path / "docs" / "data.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[gone](policies.md#there-is-no-such-heading)\n")
    assert "there-is-no-such-heading" in build(tmp_path).stderr


def test_links_follow_the_pages_that_join_the_site():
    from types import SimpleNamespace

    from tools.docs_site import JOINED, on_page_markdown

    def shown(page, text):
        return on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, None)

    assert all((ROOT / source).exists() for source in JOINED)
    assert shown("index.md", "[a](docs/data.md#rules)") == "[a](data.md#rules)"
    assert shown("index.md", "[a](examples/own_method.py)") == "[a](examples.md#own_method)"
    assert shown("results.md", "[a](../aisp_ray/demo/README.md)") == "[a](demo.md)"
    assert shown("demo.md", "[a](heads/README.md), [b](../../docs/results.md)") == "[a](heads.md), [b](results.md)"
    assert (
        shown("notes/engine.md", "[a](../engine.md#x) [b](https://x.org/y)")
        == "[a](../engine.md#x) [b](https://x.org/y)"
    )
