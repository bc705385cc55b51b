"""Opening the machines: the models of a plan, on actors of a Ray cluster or in this process.

async with open_models(plan) as models:
    await models.ready()
    driver = Driver(models.policy, models.reward, models.judges, plan.seed, models.in_flight)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aisp_ray.cluster.models import ModelPlan, Models, choose_in_flight


@contextlib.asynccontextmanager
async def open_models(plan: ModelPlan, say: Callable[[str], None] = print) -> AsyncIterator[Models]:
    """Join or start the cluster, check that the models fit, start their pools; on leaving, undo it in reverse.

    The pools load while the caller does other things; `Models.ready` waits for them. `plan.local` imports no Ray.

    Raises:
        SessionError: the cluster cannot be joined, or can never hold what is asked.
    """
    if plan.local:
        from aisp_ray.cluster.local import load_here

        opened = load_here(plan, choose_in_flight(plan, 1))
    else:
        from aisp_ray.cluster.remote import open_pools

        opened = open_pools(plan, say)
    async with opened as models:
        yield models
