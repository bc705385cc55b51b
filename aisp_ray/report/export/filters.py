"""Which rows stay: filters that look at one row as it comes, and the choice among all of them at the end."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from aisp_ray.report.export.drops import Drops
from aisp_ray.report.export.formats import Made
from aisp_ray.report.export.settings import ExportSettings
from aisp_ray.report.export.similar import SeenTexts
from aisp_ray.rng import generator

SPLITS = ("train", "validation", "test")


class RowFilters:
    """The filters on rows in the order of their cost; each row is counted by the first that drops it."""

    def __init__(self, settings: ExportSettings, drops: Drops):
        self.settings, self.drops = settings, drops
        self._prompts = SeenTexts(settings.prompt_similarity) if settings.prompt_similarity else None
        self._responses = SeenTexts(settings.response_similarity) if settings.response_similarity else None
        usual = {field.name: field.default for field in fields(ExportSettings)}
        for key in ("min_words", "max_words", "complete"):
            if getattr(settings, key) not in (None, False):
                drops.response(key, 0)
        for key in (
            "length_ratio",
            "min_margin",
            "max_margin",
            "min_reward",
            "prompt_similarity",
            "response_similarity",
        ):
            if getattr(settings, key) != usual[key]:
                drops.row(key, 0)

    def kept(self, rows: Sequence[Made]) -> list[Made]:
        """Those rows of one prompt that pass."""
        good = [row for row in rows if self._counted(self._numbers(row))]
        if not good:
            return []
        prompt = self._prompts.sketch(good[0].pool.prompt) if self._prompts else None
        if self._prompts and self._prompts.holds(prompt):
            self.drops.row("prompt_similarity", len(good))
            return []
        good = [row for row in good if self._counted(self._text(row))]
        if self._prompts and good:
            self._prompts.add(prompt)
        return good

    def _counted(self, name: str | None) -> bool:
        if name is not None:
            self.drops.row(name)
        return name is None

    def _numbers(self, row: Made) -> str | None:
        keys = self.settings
        if row.rejected is not None and row.score < keys.min_margin:
            return "min_margin"
        if row.rejected is not None and keys.max_margin is not None and row.score > keys.max_margin:
            return "max_margin"
        return "min_reward" if keys.min_reward is not None and row.chosen.reward < keys.min_reward else None

    def _text(self, row: Made) -> str | None:
        """The chosen response is compared with those of earlier rows, and with the rejected one beside it."""
        seen = self._responses
        if seen is None:
            return None
        chosen = seen.sketch(row.chosen.text)
        if seen.holds(chosen) or (row.rejected and seen.near(chosen, seen.sketch(row.rejected.text))):
            return "response_similarity"
        seen.add(chosen)
        return None


@dataclass(slots=True)
class RowIndex:
    """What the choice at the end needs of each row: 14 bytes, so that millions of rows fit in memory."""

    scores: array[float] = field(default_factory=lambda: array("d"))
    splits: array[int] = field(default_factory=lambda: array("B"))
    datasets: array[int] = field(default_factory=lambda: array("i"))
    names: dict[str, int] = field(default_factory=dict)  # dataset -> its number

    def add(self, row: Made, split: str) -> None:
        self.scores.append(row.score)
        self.splits.append(SPLITS.index(split))
        self.datasets.append(self.names.setdefault(row.pool.dataset, len(self.names)))

    def __len__(self) -> int:
        return len(self.scores)


def choose(index: RowIndex, settings: ExportSettings, drops: Drops) -> np.ndarray:
    """Whether each row stays, bool [rows]: `shares`, then `top_k_overall`.

    Raises:
        ValueError: `shares` names a dataset that no row is of.
    """
    scores, keep = np.array(index.scores), np.ones(len(index), dtype=bool)
    if settings.shares:
        keep = _in_shares(index, settings)
        drops.row("shares", int((~keep).sum()))
    if settings.top_k_overall is not None:
        before = int(keep.sum())
        if not settings.shares:
            keep = _best(scores, keep, settings.top_k_overall)
        elif before > settings.top_k_overall:  # within each dataset, so that the shares still hold
            parts = _counts(settings.shares, settings.top_k_overall)
            of = np.array(index.datasets)
            keep = np.any([_best(scores, keep & (of == index.names[name]), k) for name, k in parts.items()], axis=0)
        drops.row("top_k_overall", before - int(keep.sum()))
    return keep


def draw_control(index: RowIndex, chosen: Mapping[str, int], seed: int) -> np.ndarray:
    """As many rows of each split as were chosen, at random, bool [rows]."""
    keep, splits = np.zeros(len(index), dtype=bool), np.array(index.splits)
    for name, count in chosen.items():
        there = np.flatnonzero(splits == SPLITS.index(name))
        keep[generator(seed, "export control", name).choice(there, min(count, len(there)), replace=False)] = True
    return keep


def _in_shares(index: RowIndex, settings: ExportSettings) -> np.ndarray:
    """The largest set in which each dataset has its share; of a dataset random rows, with `top_k_overall` the best."""
    missing = [name for name in settings.shares if name not in index.names]
    if missing:
        raise ValueError(
            f"shares.{missing[0]}: no row of that dataset is left; the rows are of {', '.join(index.names)}"
        )
    of, keep = np.array(index.datasets), np.zeros(len(index), dtype=bool)
    there = {name: int((of == index.names[name]).sum()) for name in settings.shares}
    total = min(int(count / settings.shares[name] + 1e-9) for name, count in there.items())
    for name, count in _counts(settings.shares, total).items():
        rows = of == index.names[name]
        if settings.top_k_overall is not None:
            keep |= _best(np.array(index.scores), rows, count)
        else:
            picked = generator(settings.seed, "export shares", name).choice(np.flatnonzero(rows), count, replace=False)
            keep[picked] = True
    return keep


def _counts(shares: Mapping[str, float], total: int) -> dict[str, int]:
    return {name: int(share * total + 1e-9) for name, share in shares.items()}


def _best(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows of the highest score among those; the first of equal ones."""
    keep, there = np.zeros(len(scores), dtype=bool), np.flatnonzero(among)
    keep[there[np.argsort(-scores[there], kind="stable")[:count]]] = True
    return keep
