"""Runs every command of the documentation, small, in a copy of the repository: `python -m tools.docs_commands.run`.

What is made smaller, what stands in for what, and what is not run is declared here; everything else runs as printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.endpoints import serving
from tools.docs_commands.find import ROOT, DocCommand, commands_of, files_of, pages

NOT_RUN = (  # pattern -> why
    (r"s3://|gs://|BUCKET", "it needs an object store"),
    (r"^ray (up|exec|job stop)|^export RAY_API_SERVER_ADDRESS", "it needs a cluster in a cloud"),
    (r"llama3_8b|ultrarm|experiment=|owner/hub-set|push_to=|policy\.model=\.\.\.", "it needs the model hub"),
    (r"judge_win|encoder=path", "it needs a judge's endpoint or an encoder"),
    (r"tools\.real_models\.(features|fit_heads)", "it trains heads from pairs of HH-RLHF, which the reader has to get"),
    (r"^make|^python -m tools\.real_models|/real\d*\b|pip install", "make runs it: setup, eval, real, test"),
    (r"tools\.demo_models", "it trains the demo's models for twenty minutes"),
    (r"<\w+>|\.\.\.|\bNAME\b", "it is a pattern, not a command"),
)
SMALLER = (  # a job -> what is changed in its words, then what is added where the key is not there
    ("eval", ((r"limit=\d+", "limit=1"),), ("limit=1", "method.kappa=1", "allow_unequal_budgets=true")),
    (
        "tune",
        ((r"limit=\d+", "limit=1"), (r"heldout_limit=[1-9]\d*", "heldout_limit=1"), (r"trials=\d+", "trials=1")),
        ("limit=1", "heldout_limit=1", "tune.samples=32"),
    ),
    ("train_value", (), ("limit=2",)),
)
ELSEWHERE = (
    (r"/absolute/path|/abs(?=/)", "{folder}/outputs/absolute"),
    # port: the usual one is taken where another Ray runs, and then no job can be submitted
    (r"^ray start --head$", "ray start --head --dashboard-agent-listen-port={port}"),
    (r"http://localhost:800[01]/v1", "{served}"),  # servers of models that the reader has started
)
AGAIN = "No available agent to submit job"  # what Ray says to a first job while it still starts: it asks to try again
READERS = ("report", "export")  # jobs that read what this one has written
FIRST = "python jobs/eval.py run.particles=true limit=4 method.kappa=2 allow_unequal_budgets=true"
STAND_IN = "outputs/demo"  # copied for outputs that a page names and does not make
_POST = {"history": "How do I brew coffee?", "human_ref_A": "Slowly.", "human_ref_B": "Now.", "labels": 1}
DATA = {"posts.jsonl": json.dumps({**_POST, "post_id": "a", "domain": "d", "score_A": 9, "score_B": 1})}


_MARK = "AISP_DOCS_COMMANDS"  # in the environment of everything that is started


def why_not(command: DocCommand) -> str | None:
    return next((why for pattern, why in NOT_RUN if re.search(pattern, command.text)), None)


def smaller(command: DocCommand, folder: Path, served: str = "") -> str:
    """The command line as it is run. served: address of the server that stands in for models behind endpoints."""
    text = command.text
    for pattern, other in ELSEWHERE:
        text = re.sub(pattern, other.format(folder=folder, served=served, port=free_port()), text)
    for job, changes, additions in SMALLER:
        if command.job != job or "--help" in text:
            continue
        for pattern, other in changes:
            text = re.sub(rf"(?<=\s){pattern}\b", other, text)
        text = " ".join([text, *(word for word in additions if f" {word.split('=')[0]}=" not in text)])
    return text


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def stand_in(command: DocCommand, folder: Path) -> list[str]:
    """Copies the stand-in to outputs that the command reads and nothing has made; returns their names."""
    if command.job not in READERS:
        return []
    read = next((word for word in command.arguments if word.startswith("out=")), "")
    missing = [name for name in re.findall(r"outputs/\w+", read) if not (folder / name).exists()]
    for name in missing:
        shutil.copytree(folder / STAND_IN, folder / name)
    return missing


def copy_of_the_repository(folder: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\n"):
        if name and not name.startswith(("tests/", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for path in pages():
        for name, text in files_of(path):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    for name, text in DATA.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")


class Shell:
    """Runs command lines in a folder; `export` lines hold for those that follow on their page."""

    def __init__(self, folder: Path, served: str):
        self.folder, self.served = folder, served
        binaries = Path(sys.executable).parent
        self._ray = folder / "r"  # its own: no other Ray of this machine is joined; short, for paths of sockets
        self._ray.mkdir(exist_ok=True)
        self._start = {
            **os.environ,
            _MARK: str(folder),
            "RAY_TMPDIR": str(self._ray),
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
        }
        self.environment = dict(self._start)

    def new_page(self) -> None:
        self.environment = dict(self._start)

    def run(self, text: str) -> str | None:
        """None, or the end of what a command that failed has printed."""
        exported = re.fullmatch(r"export (\w+)=(.*)", text)
        if exported:
            self.environment[exported[1]] = exported[2]
            return None
        if text == "ray stop":  # it would end every Ray on this machine
            self.stop_ray()
            return None
        until = time.monotonic() + 120
        while (said := self._said(["bash", "-c", text])) and AGAIN in said and time.monotonic() < until:
            time.sleep(3)
        return said

    def _said(self, command: list[str]) -> str | None:
        with tempfile.TemporaryFile("w+") as said:  # not a pipe: what stays running, such as a Ray head, holds it open
            code = subprocess.run(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            ).returncode
            said.seek(0)
            return None if code == 0 else said.read()[-3000:] or f"exit code {code}"

    def stop_ray(self) -> None:
        """End the processes that commands of this folder have left running."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == str(self.folder):
                    process.kill()
                    process.wait(10)
        for named in self._ray.rglob("ray_current_cluster"):
            named.unlink()


def main(only: Sequence[str]) -> int:
    """only: parts of the pages' names; none: all pages. Returns how many commands failed."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="docs-") as place, serving(models=[]) as server:
        folder = Path(place)
        copy_of_the_repository(folder)
        shell = Shell(folder, server.base_url)
        try:
            for path in pages():
                shell.new_page()
                wanted = not only or any(part in str(path) for part in only)
                outcomes = Counter(try_one(command, shell) for command in (commands_of(path) if wanted else ()))
                if outcomes:
                    counts = ", ".join(f"{outcomes[each]} {each}" for each in ("ok", "failed", "not run"))
                    print(f"{path.relative_to(ROOT)}: {counts}\n", flush=True)
                failed += outcomes["failed"]
        finally:
            shell.stop_ray()
    print(f"{failed} commands failed" if failed else "no command failed")
    return failed


def try_one(command: DocCommand, shell: Shell) -> str:
    """What became of it: ok, failed or not run."""
    place = f"{command.page}:{command.line}"
    part = command.inline and not re.search(r" --help\b| out=", command.text)
    why = why_not(command) or ("it is in running text" if part else None)
    if why:
        print(f"-      {place}  {command.text}\n       not run: {why}")
        return "not run"
    begins = command.job in READERS and not (shell.folder / STAND_IN).exists()
    if begins and report("to begin with", shell, FIRST) == "failed":
        return "failed"
    for name in stand_in(command, shell.folder):
        print(f"       {name} is a copy of {STAND_IN}")
    return report(f"{place}  {command.text}", shell, smaller(command, shell.folder, shell.served))


def report(shown: str, shell: Shell, text: str) -> str:
    started = time.monotonic()
    said = shell.run(text)
    seconds = time.monotonic() - started
    outcome = "failed" if said else "ok"
    print(f"{outcome:6} {shown}\n       run as: {text}  ({seconds:.0f} s)", flush=True)
    if said:
        print("".join(f"       | {line}\n" for line in said.split("\n")), flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
