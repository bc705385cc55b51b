"""Finds the commands that README, docs/ and the helps of the commands show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# in the order that makes their commands runnable: reports read what evaluations and searches have written
PAGES = ("docs/results.md", "docs/tuning.md", "docs/*.md", "docs/notes/*.md", "README.md", "aisp_ray/demo/**/README.md")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_STARTS = re.compile(r"(python|make|ray|for|export|aisp-[a-z-]+|bash|pip) ")
_LOOP = re.compile(r"for (\w+) in ([^;]+); do (.+?); done")
_INLINE = re.compile(r"`((?:python jobs/|python -m |make )[^`]+)`")
_NAMED = re.compile(r"# ([\w/]+\.(?:py|yaml|jsonl))\b")


@dataclass(frozen=True)
class DocCommand:
    """One command as a page shows it, on one line and without its comment."""

    page: str  # below the repository's root
    line: int  # of the page
    text: str
    inline: bool = False  # in running text: often a part of what is meant

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def job(self) -> str | None:
        """eval, tune, report, export or train_value, also behind `ray job submit`; None for other programs."""
        found = re.search(r"\bpython jobs/(\w+)\.py|^aisp-([a-z-]+)", self.text)
        return (found[1] or found[2].replace("-", "_")) if found else None

    @property
    def arguments(self) -> list[str]:
        """The key=value words of a job."""
        words = self.words
        at = next(i for i, word in enumerate(words) if word.startswith(("jobs/", "aisp-")))
        return words[at + 1 :]


def pages() -> list[Path]:
    return list(dict.fromkeys(path for pattern in PAGES for path in sorted(ROOT.glob(pattern))))


def commands_of(path: Path) -> Iterator[DocCommand]:
    """The commands of a page, in its order: lines of shell blocks, then those in running text."""
    text = path.read_text(encoding="utf-8")
    page = str(path.relative_to(ROOT))
    for block in _BLOCK.finditer(text):
        if block[1] not in ("", "bash", "sh"):
            continue
        first = text.count("\n", 0, block.start(2)) + 1
        yield from _of_lines(page, first, block[2])
    prose = _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    for found in _INLINE.finditer(prose):
        line = prose.count("\n", 0, found.start()) + 1
        yield DocCommand(page, line, " ".join(found[1].split()), inline=True)


def commands_of_help(name: str, about: str) -> Iterator[DocCommand]:
    """The examples in what `--help` begins with."""
    for each in _of_lines(f"{name} --help", 1, about):
        text = re.sub(r"\s{3,}.*", "", each.text)  # behind it stands what it does
        if "[key=value ...]" not in text:
            yield replace(each, text=text)


def _of_lines(page: str, first: int, lines: str) -> Iterator[DocCommand]:
    joined = lines.replace("\\\n", "\0")
    at = first
    for line in joined.split("\n"):
        text = re.sub(r"\s+#.*", "", line.replace("\0", " ")).strip()
        if _STARTS.match(text):
            loop = _LOOP.fullmatch(" ".join(text.split()))
            for value in loop[2].split() if loop else ("",):
                shown = loop[3].replace(f"${loop[1]}", value) if loop else text
                yield DocCommand(page, at, " ".join(shown.split()) if loop else text)
        at += 1 + line.count("\0")


def files_of(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the files that a page shows whole: blocks that begin with their name."""
    for block in _BLOCK.finditer(path.read_text(encoding="utf-8")):
        named = _NAMED.match(block[2])
        if named:
            yield named[1], block[2]
