"""A hook of mkdocs.yml: README, changelog and examples, from outside docs/, join the site, and links follow them."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
JOINED = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "aisp_ray/demo/README.md": "demo.md",
    "aisp_ray/demo/heads/README.md": "heads.md",
    "benchmarks/results/cluster.md": "cluster_benchmarks.md",
    "examples": "examples.md",
}
_LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for source, page in JOINED.items():
        text = examples() if source == "examples" else (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Links to files of the repository, as they work in a checkout, lead to pages of the site."""
    names = {page: source for source, page in JOINED.items()}
    source = names.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def on_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        anchor = link[3] or ""
        if target.startswith("examples/"):
            target, anchor = "examples", f"#{posixpath.basename(target).split('.')[0]}"
        found = JOINED.get(target) or target.removeprefix("docs/")
        return f"{link[1]}{posixpath.relpath(found, here or '.')}{anchor}{link[4]}"

    return _LINK.sub(on_the_site, markdown)


def examples() -> str:
    """Every example as it stands in examples/, the notebook with what it prints."""
    parts = ["# Examples", "The files of `examples/`; each runs as it stands.", _notebook("quickstart")]
    for path in sorted((ROOT / "examples").glob("*.py")) + sorted((ROOT / "examples").glob("*.sh")):
        kind = {"py": "python", "sh": "bash"}[path.suffix[1:]]
        code = path.read_text(encoding="utf-8").strip()
        parts.append(f"## {path.name} {{ #{path.stem} }}\n\n```{kind}\n{code}\n```")
    return "\n\n".join(parts) + "\n"


def _notebook(name: str) -> str:
    cells = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = [f"## {name}.ipynb {{ #{name} }}"]
    for cell in cells:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"^# .*\n+", "", text))
            continue
        parts.append(f"```python\n{text}\n```")
        printed = "".join(map(_printed, cell["outputs"])).rstrip()
        if printed:
            parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts)


def _printed(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return "".join(output["text"]) if output["name"] == "stdout" else ""
    return "".join(output.get("data", {}).get("text/plain", "")) + "\n"
