"""The tables of an evaluation: result, smaller budgets, held-out judges, cost, and published figures beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aisp_ray.errors import require_one_of
from aisp_ray.metrics.base import NUM_RESAMPLES, Estimate
from aisp_ray.report.summary import MethodSummary, flat
from aisp_ray.report.tables.cells import NONE, Cell, Column, Table, intervals, numbers, table_of, texts
from aisp_ray.report.tables.render import csv_text, latex, markdown, text

if TYPE_CHECKING:
    from aisp_ray.metrics.paired import Paired
    from aisp_ray.report.measure import Section

STYLES = {"text": text, "markdown": markdown, "latex": latex}
_COST, _TEXT = "cost per prompt", "text"
_OWN_SECONDS = ("policy s", "reward s")  # the page has them beside the other costs
_INTERVAL = f"± is half the 95 % bootstrap interval over prompts ({NUM_RESAMPLES:,} resamples)"


def format_table(records: Sequence[MethodSummary], style: str = "text") -> str:
    """The results as `text` for a terminal, `markdown`, `latex`, or `csv` with every number.

    Raises:
        ValueError: an unknown style.
    """
    if style == "csv":
        rows = [flat(record) for record in records]
        return csv_text(list(dict.fromkeys(name for row in rows for name in row)), rows)
    require_one_of("style", style, (*STYLES, "csv"))
    parts = []
    for dataset in dict.fromkeys(record.dataset for record in records):
        parts.append(STYLES[style](result_table([r for r in records if r.dataset == dataset])))
    return "\n".join(parts)


def result_table(records: Sequence[MethodSummary], short: bool = False) -> Table:
    """The columns that a paper's table has, for the records of one dataset. short: as the page shows it."""
    columns = [
        texts("method", [record.method for record in records]),
        texts("prompts", [_prompts(record) for record in records]),
        intervals("reward", [record.reward for record in records]),
    ]
    if any(record.paired for record in records):
        gains = [record.paired.difference if record.paired else Estimate() for record in records]
        columns.append(intervals(f"vs {records[0].baseline}", gains, sign=True))
        columns.append(texts("win/tie/loss", [win_tie_loss(record.paired) for record in records]))
    judges = list(dict.fromkeys(name for record in records for name in record.judges))
    for name in judges:
        columns.append(intervals(name, [r.judges.get(name, Estimate()) for r in records], group="judges"))
    columns += [
        texts("samples", [_count(record.num_samples) for record in records], _COST),
        texts("tokens", [_count(record.num_generated_tokens) for record in records], _COST),
        texts("wall s", [_seconds(record.wall_seconds) for record in records], _COST),
        texts("policy s", [_seconds(record.policy_seconds) for record in records], _COST),
        texts("reward s", [_seconds(record.reward_seconds) for record in records], _COST),
    ]
    for name in records[0].metrics:
        if name != "diversity_plus_one":  # it is in the CSV; two diversities side by side would be read as a mistake
            columns.append(intervals(name, [r.metrics.get(name, Estimate()) for r in records], group=_TEXT))
    kept = [column for column in columns if not (short and column.head in _OWN_SECONDS)]
    return table_of(records[0].dataset, kept, footnote(records, judges))


def footnote(records: Sequence[MethodSummary], judges: Sequence[str] = ()) -> str:
    """One line that says what ± and the comparison are."""
    first = records[0]
    seeds = max(record.num_seeds for record in records)
    means = f"Means over prompts ({seeds} seeds averaged first)" if seeds > 1 else "Means over prompts"
    parts = [f"{means}; {_INTERVAL}"]
    if any(record.paired for record in records):
        parts.append(f"vs {first.baseline}: mean of paired differences on shared prompts, which win/tie/loss counts")
    elif len(records) > 1:
        parts.append(f"no rows of the baseline {first.baseline}, so no differences")
    if judges:
        parts.append(f"held-out judges: {', '.join(judges)}")
    parts.append(
        "per prompt: samples, tokens, its share of policy and reward time, and wall time, in which other prompts run"
    )
    return "; ".join(parts) + "."


def how_to_read(records: Sequence[MethodSummary]) -> list[str]:
    """Which columns to look at first, and what they say."""
    found = ["reward: of the best response found, which is what the search maximises"]
    if any(record.paired for record in records):
        found.append(f"vs {records[0].baseline}: the comparison; where its ± is larger than the number, call it a tie")
    judges = list(dict.fromkeys(name for record in records for name in record.judges))
    if judges:
        names = f"{', '.join(judges)}: scores" if len(judges) > 1 else f"{judges[0]}: a score"
        found.append(f"{names} that the search did not see; a gain in reward that is not there is over-optimisation")
    return found


def _prompts(record: MethodSummary) -> str:
    return f"{record.num_prompts} ({record.num_errors} err)" if record.num_errors else str(record.num_prompts)


def win_tie_loss(pair: Paired | None) -> str:
    """ "12/3/5" prompts; - where no prompt is shared."""
    return f"{pair.wins}/{pair.ties}/{pair.losses}" if pair and pair.difference.count else NONE


def _count(value: float) -> str:
    if not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def _seconds(value: float) -> str:
    """Three significant digits, - where unknown."""
    if not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.{2 if value < 10 else 1}f}"


# ---------------------------------------------------------------- what the result table leaves out


def further_tables(section: Section, runs: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Smaller budgets, judges, cost, published figures: those that have something to show."""
    found = (budget_table(section), judge_table(section), cost_table(section), published_first(section, runs))
    return [table for table in found if table is not None]


def budget_table(section: Section) -> Table | None:
    """Best reward so far at parts of the budget."""
    lines, base = section.budgets, section.baseline
    labels = list(lines)
    if not labels:
        return None
    columns = [texts("method", labels)]
    for k, first in enumerate(lines[labels[0]]):
        head = f"{first.samples:,.0f} samples"
        columns.append(intervals(head, [lines[label][k].reward for label in labels], group=head))
        if base is not None and len(labels) > 1:
            columns.append(intervals(f"vs {base}", [lines[label][k].gain for label in labels], True, head))
    note = (
        "Best reward so far after so many samples per prompt, and its paired difference to the baseline after as many; "
        f"{_INTERVAL}. A method that builds one response token by token has an unfinished one until its last round."
    )
    return table_of("Smaller budgets", columns, note, keep_empty=True)


def judge_table(section: Section) -> Table | None:
    """What the gains are worth to rewards that the search did not see."""
    pairs = [
        (judge, record.method, record.judges_paired[judge], against[record.method].rank_correlation)
        for judge, against in section.transfers.items()
        for record in section.records
        if judge in record.judges_paired
    ]
    if not pairs:
        return None
    columns = [texts("method", [label for _, label, _, _ in pairs]), texts("judge", [judge for judge, *_ in pairs])]
    gains: list[Cell] = []
    for judge in dict.fromkeys(judge for judge, *_ in pairs):  # decimals are a judge's own: scales differ
        own = [pair.difference for name, _, pair, _ in pairs if name == judge]
        gains += intervals("", own, sign=True).cells
    columns += [
        Column(f"vs {section.baseline}", tuple(gains)),
        texts("win/tie/loss", [win_tie_loss(pair) for _, _, pair, _ in pairs]),
        numbers("win rate", [pair.win_rate for _, _, pair, _ in pairs], ".0%"),
        numbers("rank correlation of gains", [correlation for *_, correlation in pairs], ".2f"),
    ]
    note = (
        "Rank correlation (Spearman): do the prompts that gained in the optimised reward gain in the judge too? "
        "Around 0 or below, the gain is the reward model's alone. A tie counts half a win."
    )
    return table_of("Held-out judges", columns, note)


def cost_table(section: Section) -> Table:
    base, records = section.baseline, section.records
    costs = [section.costs[record.method] for record in records]
    columns = [
        texts("method", [record.method for record in records]),
        numbers("tokens/s", [cost.tokens_per_second for cost in costs], ",.0f"),
        numbers("reward calls/s", [cost.calls_per_second for cost in costs], ",.0f"),
        numbers("policy s", [record.policy_seconds for record in records], ".3g"),
        numbers("reward s", [record.reward_seconds for record in records], ".3g"),
    ]
    if base is not None:
        columns += [
            numbers(f"samples to {base}'s final mean", [cost.samples_to_baseline for cost in costs], ",.0f"),
            numbers(f"prompts that reach {base}'s reward", [cost.share_reached for cost in costs], ".0%"),
            numbers("samples they need (median)", [cost.median_samples for cost in costs], ",.0f"),
        ]
    note = (
        "Tokens and reward calls per second of the models' busy time; seconds per prompt. – is never, or not measured."
    )
    return table_of("Cost", columns, note, keep_empty=True)


# ---------------------------------------------------------------- published figures

_DIGITS = {"reward": 2, "diversity": 3, "diversity_plus_one": 3, "coherence": 3}
_TRACES = {"norm": ("control_norm",), "kl": ("kl_token_reference", "kl_token_steered", "kl")}  # the first that is there


def published_first(section: Section, runs: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """`published` of the first output whose manifest holds published figures of these methods."""
    found = (published(section, run.get("manifest.json") or {}) for run in runs.values())
    return next((table for table in found if table), None)


def published(section: Section, manifest: Mapping[str, Any]) -> Table | None:
    """The figures in an experiment's YAML beside ours; None where nothing was published.

    `reward`, a metric by its name in conf/metric, `norm` (of the last control) and `kl` (on reference prefixes).
    A method with several lines in the table (other settings, a search's preset) has each of them here, by its label.
    """
    given = dict((manifest.get("config") or {}).get("published") or {})
    source = str(given.pop("source", "the source is not named"))
    pairs = [
        (record, figures)
        for method, figures in given.items()
        for record in section.records
        if record.method.split(" ")[0] == method
    ]
    if not pairs:
        return None
    names = dict.fromkeys(name for _, figures in pairs for name in figures if not name.endswith("_pm"))
    columns = [texts("method", [record.method for record, _ in pairs])]
    for name in names:
        theirs = [_exactly(figures.get(name), figures.get(f"{name}_pm")) for _, figures in pairs]
        ours = [_ours(section, record, name) for record, _ in pairs]
        columns.append(texts(f"{name} published", [_figure(value, name) for value in theirs], name))
        trace = _trace(section, name)
        head = f"{name} ours" if name != "kl" or trace in (None, "kl") else f"{name} ours ({trace.removeprefix('kl_')})"
        columns.append(texts(head, [_figure(value, name) for value in ours], name))
    note = (
        f"Published: {source}; ± as published there. Ours: mean ± half the 95 % interval over prompts. Read "
        "them side by side only where policy, text, reward template and budget are the same."
    )
    return table_of("Published", columns, note, keep_empty=True)


def _exactly(value: float | None, spread: float | None) -> Estimate:
    return Estimate() if value is None else Estimate(value, value - (spread or 0), value + (spread or 0))


def _ours(section: Section, record: MethodSummary, name: str) -> Estimate:
    if name == "reward":
        return record.reward
    if name in _TRACES:
        return section.last.get(_trace(section, name) or "", {}).get(record.method, Estimate())
    return record.metrics.get(name, Estimate())


def _trace(section: Section, name: str) -> str | None:
    return next((trace for trace in _TRACES.get(name, ()) if trace in section.last), None)


def _figure(value: Estimate, name: str) -> str:
    if not math.isfinite(value.mean):
        return NONE
    digits = _DIGITS.get(name, 1)
    half = value.half_width
    return f"{value.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) and half > 0 else "")
