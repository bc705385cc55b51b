"""From parsed rows in input order to numbered prompts: deduplication, sampling, the limit, and the counts of each rule.

Pure and sequential: what it yields depends on the rows and the settings alone.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from aisp_ray.data._row import replace_surrogates
from aisp_ray.data._seen import Seen
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.rng import derive_seed
from aisp_ray.types import Message, Prompt

SURROGATES = "lone_surrogates"


@dataclass
class DropReport:
    """What happened to the rows read so far. num_rows = num_prompts + num_errors + sum(dropped.values())."""

    num_rows: int = 0
    num_prompts: int = 0  # usable ones
    num_errors: int = 0  # rows that end as status=error
    dropped: Counter[str] = field(default_factory=Counter)  # rows left out: duplicate, not_sampled
    rules: Counter[str] = field(default_factory=Counter)  # rows each parsing rule fired on; they stay in
    complete: bool = False  # the input was read to its end (a limit may stop before)

    def lines(self, spec: DataSpec) -> list[str]:
        """The report in sentences, for people."""
        words = {
            **spec.rules,
            SURROGATES: "half a surrogate pair in the text, replaced by U+FFFD",
            "duplicate": "dropped, the same prompt came before",
            "not_sampled": "left out by data.sample",
        }
        head = f"{self.num_rows} rows read{'' if self.complete else ' (the rest was not needed)'}: "
        lines = [f"data: {head}{self.num_prompts} prompts, {self.num_errors} of them unusable"]
        counts = [*self.dropped.items(), *self.rules.items()]
        return lines + [f"data: {count} rows: {words.get(rule, rule)}" for rule, count in counts]

    def as_dict(self) -> dict[str, object]:
        """The report as JSON values, for the manifest and the summary."""
        return {
            "num_rows": self.num_rows,
            "num_prompts": self.num_prompts,
            "num_errors": self.num_errors,
            "dropped": dict(self.dropped),
            "rules": dict(self.rules),
            "complete": self.complete,
        }


def select(rows: Iterable[Parsed], spec: DataSpec, limit: int | None, report: DropReport) -> Iterator[Prompt]:
    """Prompts in input order, numbered from 0, at most `limit` of them. Rows with errors are prompts with `error`."""
    if limit is not None and limit < 1:
        return
    kept = _unique(rows, spec, report)
    if spec.sample is not None:
        kept = _sampled(kept, spec, report)
    for ordinal, row in enumerate(kept):
        _count(row, report)
        yield _prompt(row, ordinal, spec)
        if limit is not None and ordinal + 1 >= limit:
            return


def _count(row: Parsed, report: DropReport) -> None:
    report.num_prompts += row.error is None
    report.num_errors += row.error is not None
    report.rules.update(row.rules)


def _prompt(row: Parsed, ordinal: int, spec: DataSpec) -> Prompt:
    return Prompt(
        prompt_id=f"{spec.dataset}/{spec.split}/{ordinal:08d}",
        ordinal=ordinal,
        dataset=spec.dataset,
        text=row.text,
        messages=row.messages,
        meta=row.meta,
        max_tokens=spec.max_prompt_tokens,
        error=row.error,
    )


def _unique(rows: Iterable[Parsed], spec: DataSpec, report: DropReport) -> Iterator[Parsed]:
    """Writable rows, without those whose key came before. Rows with errors are never duplicates."""
    seen = Seen()
    for parsed in rows:
        report.num_rows += 1
        row = _writable(parsed)
        if spec.dedup and row.error is None and not seen.add(row.key or row.text):
            report.dropped["duplicate"] += 1
            continue
        yield row
    report.complete = True


def _sampled(rows: Iterable[Parsed], spec: DataSpec, report: DropReport) -> Iterator[Parsed]:
    """The `sample` rows with the smallest keyed hash, in input order: a uniform draw that adding rows barely moves."""
    heap: list[tuple[int, int, Parsed]] = []
    for index, row in enumerate(rows):
        item = (-derive_seed(spec.sample_seed, "sample", row.key or row.text, index if row.error else 0), -index, row)
        if len(heap) < (spec.sample or 0):
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
            report.dropped["not_sampled"] += 1
    return iter([row for _, _, row in sorted(heap, key=lambda item: -item[1])])


def _writable(row: Parsed) -> Parsed:
    """The row with text that any encoding can write."""
    texts = [row.text, *[turn.content for turn in row.messages], row.error or "", row.key or ""]
    meta = replace_surrogates(row.meta)
    if meta == row.meta and all(replace_surrogates(text) == text for text in texts):
        return row
    return replace(
        row,
        text=replace_surrogates(row.text),
        messages=tuple(Message(turn.role, replace_surrogates(turn.content)) for turn in row.messages),
        meta=meta,
        error=replace_surrogates(row.error),
        rules=(*row.rules, SURROGATES),
        key=replace_surrogates(row.key),
    )
