"""Whether what is asked can ever be placed: one sentence per problem, before anything loads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aisp_ray.types import Placement


@dataclass(frozen=True)
class Node:
    """A machine, as Ray sees it. A node type that an autoscaler may start counts `copies` times."""

    num_cpus: float
    num_gpus: float
    labels: Mapping[str, str] | None = field(default_factory=dict)  # None: not known, taken to match
    copies: int = 1

    def fits(self, spec: Placement) -> int:
        """How many actors of `spec` an empty node of this kind holds."""
        selector = spec.label_selector or {}
        if self.labels is not None and any(not _matches(self.labels.get(k), wanted) for k, wanted in selector.items()):
            return 0
        if spec.num_gpus > 0:
            if spec.num_gpus >= 1:
                return int(self.num_gpus // spec.num_gpus)
            return int(self.num_gpus) * int(1 / spec.num_gpus + 1e-9)
        return int(self.num_cpus / spec.num_cpus + 1e-9) if spec.num_cpus > 0 else 1_000_000


def _matches(value: str | None, wanted: str) -> bool:
    """Ray's label selectors: `a`, `!a`, `in(a, b)`, `!in(a, b)`."""
    negated = wanted.startswith("!")
    body = wanted.removeprefix("!")
    allowed = [item.strip() for item in body[3:-1].split(",")] if body.startswith("in(") else [body]
    return (value in allowed) != negated


def ask_in_words(spec: Placement) -> str:
    """'2 GPUs on nodes labelled aisp-role=policy'."""
    number, unit = (spec.num_gpus, "GPU") if spec.num_gpus > 0 else (spec.num_cpus, "CPU")
    words = f"{number:g} {unit}{'s' * (number != 1)}"
    labels = ", ".join(f"{key}={value}" for key, value in (spec.label_selector or {}).items())
    return f"{words} on nodes labelled {labels}" if labels else words


def find_problems(asks: Mapping[str, Placement], nodes: Sequence[Node]) -> list[str]:
    """What can never be placed on these nodes, a sentence each. asks: name -> placement, names as in the config.

    Greedy, largest GPU requests first: may let through what does not quite fit, never refuses what does.
    """
    gpus = sum(node.num_gpus * node.copies for node in nodes)
    cpus = sum(node.num_cpus * node.copies for node in nodes)
    there = f"the cluster has {gpus:g} GPUs and {cpus:g} CPUs on {sum(node.copies for node in nodes)} nodes"
    problems = []
    for name, spec in asks.items():
        places = sum(node.fits(spec) * node.copies for node in nodes)
        if not places:
            largest = max((node.num_gpus for node in nodes), default=0.0)
            hint = f"the largest node has {largest:g} GPUs" if spec.num_gpus > largest else there
            problems.append(
                f"{name}: no node can hold one actor, which asks for {ask_in_words(spec)} ({hint}); "
                f"change {name}.num_gpus, {name}.num_cpus or {name}.label_selector"
            )
        elif places < spec.actors[0]:
            problems.append(
                f"{name}: only {places} of at least {spec.actors[0]} actors can be placed, each asks for "
                f"{ask_in_words(spec)} ({there}); change {name}.actors"
            )
    if problems:
        return problems
    asked = sum(spec.num_gpus * spec.actors[0] for spec in asks.values())
    if asked > gpus + 1e-9:
        listed = ", ".join(f"{n} {s.actors[0]} x {s.num_gpus:g}" for n, s in asks.items() if s.num_gpus)
        problems.append(f"the minimum asks for {asked:g} GPUs ({listed}) and {there}; change actors or num_gpus")
    used = cpus_of(asks, 0)
    if used + 1 > cpus + 1e-9:
        takers = {name: spec for name, spec in asks.items() if spec.num_gpus == 0 and spec.num_cpus > 0}
        listed = ", ".join(f"{name} {spec.actors[0]} x {spec.num_cpus:g}" for name, spec in takers.items())
        lower = f"lower num_cpus or actors of {' or '.join(takers)}, or " if takers else ""
        problems.append(
            f"Ray Data would hang: actors take {used:g} of {cpus:g} CPUs ({listed or 'none'}) and reading and writing "
            f"need 1 free CPU; {lower}add a node with CPUs"
        )
    return problems


def cpus_of(asks: Mapping[str, Placement], which: int) -> float:
    """CPUs that the actors reserve at the minimum (which=0) or maximum (which=1). GPU actors reserve none."""
    return cpus_held(asks, {name: spec.actors[which] for name, spec in asks.items()})


def cpus_held(asks: Mapping[str, Placement], actors: Mapping[str, int]) -> float:
    """CPUs that so many actors of each model reserve. GPU actors reserve none."""
    return sum(asks[name].num_cpus * count for name, count in actors.items() if asks[name].num_gpus == 0)


def cpu_wait(cpus: float, purpose: str, total: float, free: float, own: float) -> str | None:
    """Why something waits for `cpus`: total and free CPUs are the cluster's, own those of this run's actors.

    None where there are enough free ones: then it waits for something else.
    """
    if free >= cpus - 1e-9:
        return None
    others = total - free - own
    holders = f"{others:g} of {total:g} are held by others" if others > 1e-9 else f"this run's actors hold {own:g}"
    return f"waiting for {cpus:g} CPU {purpose}; {holders}"


def shortage(asks: Mapping[str, Placement], reading: float, total: float, free: float) -> str | None:
    """What is said before anything starts where others hold so many CPUs that the run will wait; else None."""
    need = cpus_of(asks, 0) + reading
    if free >= min(need, total) - 1e-9:
        return None
    return (
        f"{total - free:g} of {total:g} CPUs are held by others: the actors and the reading of the data need {need:g}, "
        f"{free:g} are free, and the run waits for the rest"
    )


def most_actors(asks: Mapping[str, Placement], num_cpus: float) -> dict[str, int]:
    """Per pool, how many CPU actors may exist so that one CPU always stays free for Ray Data."""
    spare = num_cpus - 1 - cpus_of(asks, 0)
    most = {}
    for name, spec in asks.items():
        low, high = spec.actors
        if spec.num_gpus == 0 and spec.num_cpus > 0:
            more = max(0, min(high - low, math.floor(spare / spec.num_cpus + 1e-9)))
            spare -= more * spec.num_cpus
            high = low + more
        most[name] = high
    return most
