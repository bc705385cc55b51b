"""Which response of those that were drawn is returned: the highest reward, or a rule that trusts the reward less.

Each rule gives every response a score as it is drawn and keeps the highest, so no pool has to be carried (beta is
`select_beta`):

- best: the reward r_i.
- soft: i with probability proportional to exp(r_i / beta) (Verdun et al., 2025, "Soft Best-of-n"), by the Gumbel-max
  trick with named Gumbel noise.
- regularised: r_i + beta * log pi(y_i) (Jinnai et al., 2024, arXiv 2404.01054, their KL form): a response that is
  unlikely under the policy needs more reward.
- poisson: the best of the first 1 + N draws, N from a Poisson distribution of mean beta, drawn once per prompt (Khalaf
  et al., 2025, "Best-of-Poisson", arXiv 2506.19248). No more are made.
- random: any response that has a reward, each as likely: the control that tells what a rule gains from chance.
"""

from __future__ import annotations

import math

import numpy as np

from aisp_ray.rng import generator
from aisp_ray.types import Rollouts, Scores

SELECTIONS = ("best", "soft", "regularised", "poisson", "random")
PREFIX_SELECTIONS = ("best", "soft", "poisson", "random")  # of methods whose log-probabilities miss a given prefix
NEEDS_BETA = ("soft", "regularised", "poisson")


def selection_scores(
    rule: tuple[str, float], name: tuple[int, str], first: int, drawn: tuple[Rollouts, Scores]
) -> np.ndarray:
    """What the highest of is kept, float64 [n]; -inf or NaN is never kept.

    rule: `select` and `select_beta`. name: seed and prompt id. first: how many responses were drawn before these.
    """
    (select, beta), (rollouts, scores) = rule, drawn
    rewards = np.asarray(scores.rewards, dtype=np.float64)
    if select == "soft":
        gumbel = generator(*name, "soft best-of-n", rollouts.iteration).gumbel(size=len(rewards))
        return rewards / beta + gumbel
    if select == "regularised":
        return rewards + beta * np.array([item.logprob for item in rollouts.items])
    if select == "poisson":
        return np.where(first + np.arange(len(rewards)) < poisson_draws(beta, name), rewards, -math.inf)
    if select == "random":
        gumbel = generator(*name, "random response", rollouts.iteration).gumbel(size=len(rewards))
        return np.where(np.isfinite(rewards), gumbel, math.nan)
    return rewards


def poisson_draws(mean: float, name: tuple[int, str]) -> int:
    """1 + N, N from a Poisson distribution, named by seed and prompt id."""
    return 1 + int(generator(*name, "best-of-poisson").poisson(mean))
