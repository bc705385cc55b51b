"""How often a reward model prefers the response that people preferred, before a night is spent on maximising it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

from aisp_ray.cluster.models import ModelPlan
from aisp_ray.data.preference import Preference
from aisp_ray.data.stream import rows_locally
from aisp_ray.errors import DataError, RefusedError
from aisp_ray.types import Prompt, Reward

_AT_ONCE = 64  # pairs sent and not yet back
_LEVEL = 0.95


@dataclass(frozen=True)
class Accuracy:
    """Of a reward model on labelled pairs."""

    right: float  # pairs whose preferred response has the higher reward; a tie counts half
    num_pairs: int  # scored
    num_unusable: int = 0  # rows without two responses, and pairs without two finite rewards

    @property
    def share(self) -> float:
        return self.right / self.num_pairs

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (1927) at 95 %."""
        n, p, z = self.num_pairs, self.share, NormalDist().inv_cdf((1 + _LEVEL) / 2)
        middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(0.0, (middle - half) / (1 + z**2 / n)), min(1.0, (middle + half) / (1 + z**2 / n))

    def says(self) -> str:
        low, high = self.interval
        rest = f"; {self.num_unusable:,} rows could not be used" if self.num_unusable else ""
        return (
            f"prefers the labelled response in {self.share:.1%} of {self.num_pairs:,} pairs "
            f"({low:.1%} to {high:.1%}){rest}"
        )


async def accuracy(pairs: Iterable[Prompt], reward: Reward) -> Accuracy:
    """pairs: with `preferred` and `rejected` in `meta`, as `data.preference` reads them."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(prompt: Prompt) -> float | None:
        """1 right, 0 wrong, 0.5 a tie, None unusable."""
        both = [prompt.meta.get(name) for name in ("preferred", "rejected")]
        if prompt.error is not None or not all(both):
            return None
        try:
            async with gate:
                rewards = (await reward.score(prompt, tuple(map(str, both)))).rewards
        except DataError:
            return None
        if not all(map(math.isfinite, rewards)):
            return None
        return 0.5 if rewards[0] == rewards[1] else float(rewards[0] > rewards[1])

    found = await asyncio.gather(*map(one, pairs))
    usable = [verdict for verdict in found if verdict is not None]
    return Accuracy(sum(usable), len(usable), len(found) - len(usable))


def read_pairs(path: str) -> list[Prompt]:
    """The rows of a file, all pairs of a prompt among them; a pair that is there twice counts once."""
    found: dict[object, Prompt] = {}
    for index, row in enumerate(rows_locally(Preference(path=path, dedup=False))):
        pair = (row.text, row.meta.get("preferred"), row.meta.get("rejected"))
        found.setdefault(index if row.error else pair, row)
    return list(found.values())


def check_reward(plan: ModelPlan, path: str, least: float, say: Callable[[str], None] = print) -> Accuracy:
    """The accuracy of the plan's reward model, on its own actors.

    Raises:
        RefusedError: it is below `least`, or no pair of the file can be used.
    """
    from aisp_ray.cluster.remote import open_reward

    pairs = read_pairs(path)

    async def ask() -> Accuracy:
        async with open_reward(plan, say) as reward:
            return await accuracy(pairs, reward)

    found = asyncio.run(ask())
    if not found.num_pairs:
        raise RefusedError(f"reward_check={path}: none of its {len(pairs)} rows is a pair that can be scored")
    if found.share < least:
        raise RefusedError(
            f"the reward model {found.says()}, below reward_check_least={least:g}; choose another reward, or lower it"
        )
    return found
