"""Several reward models as one: their mean, the worst of them, or a lower confidence bound.

Sources: Coste et al., arXiv 2310.02743 (mean, worst case, and uncertainty-weighted mean - coefficient * variance).
Differs from the paper: `lcb` subtracts a multiple of the standard deviation, which has the unit of the reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aisp_ray.errors import require_one_of
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.types import Prompt, Scores


@dataclass(frozen=True, kw_only=True)
class Ensemble(RewardSpec):
    """Settings of an ensemble. Its members live on one actor, so their own placement keys are not used."""

    members: tuple[Any, ...]  # names of conf/reward, or mappings with a _target_ and its keys
    combine: str = "mean"  # mean | min | lcb (mean - coefficient * standard deviation of the members)
    coefficient: float = 1.0  # of lcb
    shifts: tuple[float, ...] | None = None  # subtracted from the members' rewards first, e.g. their means on a sample
    scales: tuple[float, ...] | None = None  # the shifted rewards are divided by these, e.g. by standard deviations
    specs: tuple[RewardSpec, ...] = field(init=False, default=(), repr=False)  # the members' settings

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.members) < 2:
            raise ValueError(f"members has {len(self.members)} reward models; an ensemble needs at least 2")
        require_one_of("combine", self.combine, ("mean", "min", "lcb"))
        if self.combine != "lcb" and self.coefficient != 1.0:
            raise ValueError(f"coefficient={self.coefficient} only matters to combine=lcb")
        for name in ("shifts", "scales"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.members):
                raise ValueError(f"{name} has {len(given)} numbers for {len(self.members)} members")
        if self.scales is not None and not all(scale > 0 for scale in self.scales):
            raise ValueError(f"scales is {list(self.scales)}; each must be above 0")
        object.__setattr__(self, "specs", tuple(_spec(member, at) for at, member in enumerate(self.members)))

    def check(self, where: str = "reward") -> list[str]:
        return [text for at, spec in enumerate(self.specs) for text in spec.check(f"{where}.members[{at}]")]

    def pinned(self, where: str = "reward") -> Ensemble:
        members = tuple(spec.pinned(f"{where}.members[{at}]") for at, spec in enumerate(self.specs))
        return replace(self, members=members)

    def load(self, device: str) -> EnsembleScorer:
        return EnsembleScorer(self, [spec.load(device) for spec in self.specs])


def _spec(member: Any, at: int) -> RewardSpec:
    from aisp_ray.config import build, read_choice

    if isinstance(member, RewardSpec):
        return member
    values = read_choice("reward", member) if isinstance(member, str) else dict(member)
    values.pop("_judges_", None)  # the usual judges of a preset
    if "_target_" not in values:
        raise ValueError(
            f"members[{at}] has no _target_; give the name of a reward choice or a mapping with a _target_"
        )
    spec = build(values, f"members[{at}]")
    if not isinstance(spec, RewardSpec):
        raise ValueError(f"members[{at}] is a {type(spec).__name__}, which is no reward model")
    return spec


class EnsembleScorer(Scorer):
    """`rewards.base.Scorer` of several. A response that one member cannot score has no reward."""

    def __init__(self, spec: Ensemble, members: Sequence[Scorer]):
        self.spec = spec
        self.members = members
        limits = [member.max_requests for member in members]
        self.max_requests = 1 if all(limit == 1 for limit in limits) else None

    def describe(self, prompt: Prompt) -> str | None:
        texts = [text for member in self.members if (text := member.describe(prompt)) is not None]
        return "\n----\n".join(texts) or None

    def stats(self) -> dict[str, float]:
        """The members' counters, behind their place."""
        return {
            f"member{at}_{name}": value
            for at, member in enumerate(self.members)
            for name, value in member.stats().items()
        }

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        by_member = [member.score(requests) for member in self.members]
        return [self._combined([scores[at] for scores in by_member]) for at in range(len(requests))]

    def _combined(self, scores: list[Scores]) -> Scores:
        rewards, errors = [], []
        for particle in range(len(scores[0].rewards)):
            values = [self._scaled(at, one.rewards[particle]) for at, one in enumerate(scores)]
            texts = [one.errors[particle] for one in scores if one.errors and one.errors[particle]]
            value = self._combine(values) if not texts else math.nan
            rewards.append(value)
            errors.append(texts[0] if texts else None if math.isfinite(value) else f"the members gave {values}")
        return Scores(
            tuple(rewards),
            tuple(errors),
            seconds=sum(one.seconds for one in scores),
            num_truncated=max(one.num_truncated for one in scores),
            traceback=next((one.traceback for one in scores if one.traceback), None),
        )

    def _scaled(self, member: int, reward: float) -> float:
        shift = self.spec.shifts[member] if self.spec.shifts else 0.0
        scale = self.spec.scales[member] if self.spec.scales else 1.0
        return (reward - shift) / scale

    def _combine(self, values: list[float]) -> float:
        if self.spec.combine == "min":
            return math.nan if any(math.isnan(value) for value in values) else min(values)
        mean = sum(values) / len(values)
        if self.spec.combine == "mean":
            return mean
        return mean - self.spec.coefficient * math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
