"""The best distinct responses of a search, and what they begin with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aisp_ray.types import Rollouts, Scores


@dataclass(frozen=True, slots=True)
class Member:
    """A response of the memory."""

    reward: float
    token_ids: tuple[int, ...]


def remember(members: tuple[Member, ...], rollouts: Rollouts, scores: Scores, capacity: int) -> tuple[Member, ...]:
    """The best distinct responses of the memory and a round, best first; the earlier one wins a tie."""
    known = {member.token_ids: member for member in members}
    for item, reward in zip(rollouts.items, scores.rewards, strict=True):
        if math.isfinite(reward) and item.token_ids and item.token_ids not in known:
            known[item.token_ids] = Member(float(reward), item.token_ids)
    return tuple(sorted(known.values(), key=lambda member: -member.reward)[:capacity])


def agreed(members: Sequence[Member]) -> int:
    """Tokens that all of them begin with; 0 for none."""
    columns = zip(*(member.token_ids for member in members), strict=False)
    return next((t for t, column in enumerate(columns) if len(set(column)) > 1), min(map(_length, members), default=0))


def _length(member: Member) -> int:
    return len(member.token_ids)
