"""What a run announces: what it loads, what it resumes, what it searches, and what the models read of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from aisp_ray.cluster.pool import Pool
from aisp_ray.files import ROWS, inside
from aisp_ray.pipeline.store import Store
from aisp_ray.plan import Plan
from aisp_ray.types import Prompt

_DESCRIBE_ATTEMPTS = 3
_MOST_SHOWN = 1200  # characters of a prompt


def loading(plan: Plan, run_id: str, pools: Mapping[str, Pool]) -> Iterator[str]:
    actors = ", ".join(f"{name} {_how_many(pool)} x {pool.settings.ask}" for name, pool in pools.items())
    yield f"run {run_id} ({plan.config_hash}): {', '.join(plan.methods)}"
    yield f"2/3 loading the models onto actors: {actors}"
    if line := plan.policy.announcement():
        yield line
    limit = plan.policy.max_new_tokens
    for name, method in plan.methods.items() if limit else ():
        for remark in method.remarks(limit):
            yield f"{name}: {remark}"


def _how_many(pool: Pool) -> str:
    low, high = pool.settings.low, pool.settings.high
    return str(low) if low == high else f"{low} to {high}"


def resuming(plan: Plan, store: Store, num_rows: int, num_searches: int) -> Iterator[str]:
    """What an earlier run of this output left, and which of this run's keys therefore have no effect."""
    if num_rows or num_searches:
        yield f"resuming: {num_rows} rows are done, {num_searches} searches are under way"
    kept, asked = store.chunks.chunk_rows, plan.run.chunk_rows
    if kept != asked:
        yield f"run.chunk_rows stays {kept}, with which {plan.out} was begun, and not {asked}"
    if store.num_beyond:
        beyond = f"{store.num_beyond} rows of prompts beyond limit={plan.limit} are there from an earlier run"
        yield f"{beyond}: they stay, and the table and the report show them too"


def searching(plan: Plan, num_rows: int | None, in_flight: int) -> str:
    most = plan.policy.max_new_tokens
    samples = sum(method.num_samples for method in plan.methods.values())
    cost = f"{samples:,} responses per prompt" + (f" of at most {most} tokens" if most else "")
    prompts = "all prompts" if num_rows is None else f"{num_rows // len(plan.methods):,} prompts"
    return (
        f"3/3 searching: {prompts}, {cost} over {len(plan.methods)} methods, "
        f"{in_flight} searches at once; rows go to {inside(plan.out, ROWS)}"
    )


async def read_of(prompt: Prompt, pool: Pool) -> str | None:
    """What a model reads of a prompt, or why that cannot be shown."""
    shown = None
    for _ in range(_DESCRIBE_ATTEMPTS):
        try:
            return await pool.ask("describe", prompt)
        except Exception as error:  # that actor may have ended; another answers
            shown = f"(cannot be shown: {str(error).splitlines()[0]})"
    return shown


def shown_prompt(role: str, text: str | None) -> Sequence[str]:
    """The lines that show what a model reads."""
    if text is None:
        return ()
    more = len(text) - _MOST_SHOWN
    cut = f"{text[:_MOST_SHOWN]} ... [{more} characters more in manifest.json]" if more > 0 else text
    return (f"what the {role} reads of the first prompt:", *(f"  | {line}" for line in cut.splitlines()))
