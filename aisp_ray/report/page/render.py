"""The page: one HTML file with the tables, a browser of all prompts, the figures, and how the run was made."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from aisp_ray.errors import visible
from aisp_ray.report.figures.draw import COLOURS, Picture
from aisp_ray.report.measure import Section
from aisp_ray.report.page import payload as browser
from aisp_ray.report.searches import Search
from aisp_ray.report.tables.cells import NONE, Table, count, with_ends
from aisp_ray.report.tables.evaluation import further_tables, result_table
from aisp_ray.report.tables.search import choice_table, estimate_of, settings_text, trials_table
from aisp_ray.tune.heldout import verdict

Runs = Mapping[str, Mapping[str, Any]]  # output -> {"manifest.json": ..., "summary.json": ...}
_STATES = {
    "complete": "saw all prompts",
    "stopped": "stopped early",
    "running": "under way",
    "invalid": "not allowed",
}


@dataclass(frozen=True, slots=True)
class Part:
    """What stands under one heading."""

    heading: str
    intro: str = ""
    tables: Sequence[Table] = ()
    verdict: str = ""
    yaml: str | None = None  # a preset to copy
    colours: Mapping[str, str] = field(default_factory=dict)  # label -> its colour in the figures
    figures: Sequence[tuple[str, list[Markup]]] = ()  # (caption, inline SVGs)


def render(
    sections: Sequence[Section],
    searches: Mapping[str, Search],
    drawn: Mapping[str, Sequence[Picture]],
    notices: Sequence[str],
    runs: Runs,
) -> str:
    """The page as text.

    searches: by name. drawn: a dataset's or search's name -> its figures, no entry where none could be drawn.
    """
    folder = files("aisp_ray.report.page")
    read = {name: folder.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    environment.filters["minus"] = minus
    total = sum(len(browser.prompts_of(section)) for section in sections)
    names = [section.dataset for section in sections if not section.of_search]
    return environment.from_string(read["html"]).render(
        title=", ".join([*names, *(f"search of {name}" for name in searches)]),
        meta=f"{count(total, 'prompt')}, {count(len({r.method for s in sections for r in s.records}), 'method')}",
        css=Markup(read["css"]),
        js=Markup(read["js"]),
        notices=notices,
        results=list(_results(sections, searches)),
        details=list(_details(sections, searches, runs)),
        figures=[_figures(name, own, len(drawn) > 1) for name, own in drawn.items() if own],
        missing_figures=bool(sections) and not drawn,
        browser=bool(total),
        left_out=f"The first {browser.MAX_PROMPTS:,} of {total:,} prompts are here; the table is of all."
        if total > browser.MAX_PROMPTS
        else "",
        facts=[(out, command_of(values), list(_facts(values))) for out, values in runs.items()],
        data=browser.packed(browser.payload(sections)),
    )


def minus(text: str) -> str:
    """Numbers with a true minus, and a dash for what is unknown."""
    return "–" if text == NONE else re.sub(r"(^|[\[ ])-(?=\d)", "\\1−", text)


def _printable(value: Any) -> Any:
    """What the template prints, control characters of errors and names shown: whoever prints the file obeys none."""
    if isinstance(value, Markup):
        return Markup(visible(value))
    return visible(value) if isinstance(value, str) else value


# ---------------------------------------------------------------- what stands where


def _results(sections: Sequence[Section], searches: Mapping[str, Search]) -> Iterator[Part]:
    """Results of evaluations, then searches, then what the searches chose on held-out prompts."""
    many = len(sections) + len(searches) > 1
    for section in sections:
        if not section.of_search:
            heading = section.dataset if many else "Result"
            yield Part(heading, tables=[result_table(section.records, short=True)], colours=colours_of(section))
    for name, search in searches.items():
        yield _choice(name, search)
    for section in sections:
        if section.of_search:
            heading = f"Presets and chosen settings: {section.dataset}"
            yield Part(heading, tables=[result_table(section.records, short=True)], colours=colours_of(section))


def _choice(name: str, search: Search) -> Part:
    """The chosen setting, its confirmation, and the preset to use it."""
    heading, intro = f"Search of {name}", search_intro(search)
    best, tuning, heldout = search.best, search.confirmation("tuning"), search.confirmation("heldout")
    if best is None:
        return Part(heading, intro, verdict="No setting has a value on all tuning prompts yet.")
    if tuning is None:
        text = (
            f"Best so far: {settings_text(best)}, {with_ends(estimate_of(best, 'value'))} on {best['num_prompts']} "
            "tuning prompts. Nothing has been chosen, nor measured on held-out prompts: the search has not ended."
        )
        return Part(heading, intro, verdict=text)
    told = verdict(tuning, heldout) if heldout is not None else "Not measured on held-out prompts (heldout_limit=0)."
    return Part(heading, intro, [choice_table(search, tuning, heldout)], told, search.best_yaml)


def search_intro(search: Search) -> str:
    """What was searched, how, and what it cost, in words."""
    rows, config = search.trials, search.manifest.get("config") or {}
    if not rows:
        return f"No trial is complete yet; {search.num_evaluations:,} evaluations (setting × prompt) are on disk."
    states = Counter(row["state"] for row in rows[1:])
    words = [f"{states[state]} {text}" for state, text in _STATES.items() if states[state]]
    parts = [f"The preset and {count(len(rows) - 1, 'setting')}"]
    parts[0] += f" by {config['search']}" if config.get("search") else ""
    parts[0] += f" ({', '.join(words)})" if words else ""
    parts.append(f"objective: {search.objective}")
    first = rows[0]
    if first["num_samples"] and first["num_prompts"]:
        samples = round(first["num_samples"] / first["num_prompts"])
        parts.append(f"{count(samples, 'sample')} per prompt for every setting")
    spent = sum(row["num_prompts"] for row in rows)
    parts.append(f"{spent:,} evaluations (setting × prompt) spent")
    grid = (search.summary.get("cost") or {}).get("evaluations_of_the_full_grid") if search.finished else None
    parts += [f"the full grid takes {grid:,}"] if grid and grid > spent else []
    return "; ".join(parts) + "."


def _details(sections: Sequence[Section], searches: Mapping[str, Search], runs: Runs) -> Iterator[Part]:
    many = len(sections) + len(searches) > 1
    for section in sections:
        heading = f"Details: {section.dataset}" if many else "Details"
        tables = further_tables(section, {} if section.of_search else runs)
        yield Part(heading, tables=tables, colours=colours_of(section))
    for name, search in searches.items():
        if search.trials:
            yield Part(f"All settings of {name}", tables=[trials_table(search)])


def colours_of(section: Section) -> dict[str, str]:
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(section.labels)}


def _figures(name: str, drawn: Sequence[Picture], many: bool) -> Part:
    """Figures under their captions; those of one caption stand together."""
    groups: dict[str, list[Markup]] = {}
    for picture in drawn:
        groups.setdefault(picture.caption, []).append(Markup(picture.inline(f"{_slug(name)}-")))
    return Part(f"Figures: {name}" if many else "Figures", figures=list(groups.items()))


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


# ---------------------------------------------------------------- how it was made


def command_of(values: Mapping[str, Any]) -> str:
    """The command of the last run in one line for a shell; empty where the manifest does not say."""
    manifest = values.get("manifest.json") or {}
    words = (manifest.get("runs") or [{}])[-1].get("command") or manifest.get("command") or ()
    if not words:
        return ""
    program, *rest = map(str, words)
    first = ["python", program] if program.endswith(".py") else [PurePath(program).name]
    return shlex.join([*first, *rest])


def _facts(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Configuration, versions, hardware, budgets: (key, file, YAML) of a run's own files."""
    for name, value in values.items():
        for key, inner in value.items():
            text = yaml.safe_dump(inner, sort_keys=False, allow_unicode=True, width=110)
            yield key, name, text.removesuffix("...\n")  # with which YAML ends a text or a number that stands alone
