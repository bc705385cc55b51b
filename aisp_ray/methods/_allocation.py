"""A budget over all prompts: which searches go on, by what their next iterations are expected to gain.

Raman, Asi and Kale, "AdaBoN: adaptive best-of-n alignment", arXiv 2505.12050, share a budget out over prompts after a
first look at each. Only its abstract could be read: that the draws are taken as normal, and that the plan is made anew
after every iteration, is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aisp_ray.methods._stopping import expected_gains


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a search has seen: mean, standard deviation and best of its rewards, and what it may still do."""

    mean: float  # reward units, of what the next iteration is expected to draw; NaN: unknown
    spread: float  # reward units
    best: float  # reward units
    num_draws: int  # responses of an iteration
    num_left: int  # iterations that it may still make


def outlook(method: Any, trace: tuple[Sequence[float], Sequence[float], Sequence[float]], told: int) -> Outlook:
    """What the next iterations of a search may bring, judged by its first `told`.

    method: its `n`, `kappa` and `same_draws`. trace: mean, standard deviation and highest of the rewards by iteration.
    The outlook has the mean and spread of the last one, or of all where every iteration draws from one distribution.
    """
    means, spreads, highest = (np.array(values[:told], dtype=np.float64) for values in trace)
    used = np.isfinite(spreads) & (method.same_draws | (np.arange(told) == told - 1))
    unknown = not used.any()
    mean = math.nan if unknown else float(means[used].mean())
    spread = math.nan if unknown else float(np.sqrt(np.square(spreads[used]).mean()))
    best = math.nan if unknown else float(np.nanmax(highest))
    return Outlook(mean, spread, best, method.n, method.kappa - told)


def allocate(outlooks: Mapping[int, Outlook], samples: int) -> dict[int, int]:
    """How many more iterations each search should get, by key, so that all of them cost at most `samples`.

    The iterations of the largest expected gain are taken one after another; since each one of a search gains less than
    the one before, no other plan is expected to gain more. Equal gains: the lower key. An iteration that is expected
    to gain nothing, or of which nothing is known, is not made. All searches draw equally many responses an iteration.
    """
    found = []
    for key in sorted(outlooks):
        one = outlooks[key]
        if not np.isfinite([one.mean, one.spread, one.best]).all():
            continue
        counts = [one.num_draws * k for k in range(one.num_left + 1)]
        gains = np.minimum.accumulate(np.diff(expected_gains(one.mean, one.spread, one.best, counts)))
        found += [(-gain, key) for gain in gains.tolist() if gain > 0]
    found.sort()
    plan: dict[int, int] = {}
    for _, key in found[: samples // outlooks[found[0][1]].num_draws if found else 0]:
        plan[key] = plan.get(key, 0) + 1
    return plan
