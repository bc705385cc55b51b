"""A mean as the log of its importance weights: what a method ships instead of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class MeanSource(Protocol):
    """What a policy offers to whoever rebuilds a mean on its device."""

    dim: int
    device: Any

    def noise(self, iteration: int, particles: Sequence[int], horizon: int) -> Tensor:
        """Standard normal noise of this prompt, float32 [len(particles), horizon, d]."""

    def replay(self, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Base pre-logits of given responses by one teacher-forced pass, float32 [num_tokens_i, d] each."""

    def head(self, prelogits: Tensor) -> Tensor:
        """The model's own LM head (bias, caps and scaling included): [..., d] -> [..., vocabulary]."""

    def head_weight(self) -> Tensor:
        """W, [vocabulary, d]."""


class MeanSpec(Protocol):
    """Describes U [t, d]; hashable, small, and enough to rebuild U anywhere. Cached by the engine under itself."""

    def fold(self, source: MeanSource, horizon: int) -> Tensor:
        """U as float32 [horizon, d] on the source's device."""

    def parent(self) -> MeanSpec | None:
        """The description of the mean before the last update (a cached one is gone on from), or None."""

    def advance(self, mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
        """One update: from the parent's mean [horizon, d] to this one's."""


@dataclass(frozen=True, slots=True)
class Elite:
    """A particle of an earlier iteration that takes part in an update once more, as it was drawn then."""

    iteration: int
    particle: int
    weight: float
    length: int  # live positions


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One iteration of a weight log: enough to redo the update of the mean.

    Particle i drew v_i = mean_scales[i] * U + noise_scales[i] * sigma * eps_i, the scales 1 where None.
    """

    iteration: int
    weights: tuple[float, ...]  # [n], sum to 1 (together with those of the elites)
    lengths: tuple[int, ...]  # [n] live positions of each particle
    sigma: float
    step_size: float = 1.0
    mean_scales: tuple[float, ...] | None = None
    noise_scales: tuple[float, ...] | None = None
    antithetic: bool = False
    elites: tuple[Elite, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightLog:
    """A mean as the log of its updates, U <- U + step_size * (sum_i w_it v_it - U), per live position.

    w_it are the weights renormalised over the particles that still lived at position t; where none did, U stays.
    """

    entries: tuple[WeightEntry, ...] = ()

    def fold(self, source: MeanSource, horizon: int) -> Tensor:
        return self._means(len(self.entries), source, horizon)[-1]

    def parent(self) -> WeightLog | None:
        return WeightLog(self.entries[:-1]) if self.entries else None

    def advance(self, mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
        entry = self.entries[-1]
        latest = max((self._index(elite) + 1 for elite in entry.elites), default=0)
        means = self._means(latest, source, horizon) if latest else []
        return mean + _update(entry, self._drawn(entry, means, source, horizon), mean, source, horizon)

    def _means(self, count: int, source: MeanSource, horizon: int) -> list[Tensor]:
        """U before the first entry, after it, ... and after `count` of them, [horizon, d] each."""
        import torch

        means = [torch.zeros(horizon, source.dim, device=source.device)]
        for entry in self.entries[:count]:
            past = self._drawn(entry, means, source, horizon)
            means.append(means[-1] + _update(entry, past, means[-1], source, horizon))
        return means

    def _index(self, elite: Elite) -> int:
        return [entry.iteration for entry in self.entries].index(elite.iteration)

    def _drawn(self, entry: WeightEntry, means: list[Tensor], source: MeanSource, horizon: int) -> list[Tensor]:
        """v of an entry's elites as they were drawn, around the mean of their iteration, [horizon, d] each."""
        found = []
        for elite in entry.elites:
            index, who = self._index(elite), elite.particle
            drawn = self.entries[index]
            eps = signed_noise(source, drawn.iteration, [who], horizon, drawn.antithetic)[0]
            mean_scale = 1.0 if drawn.mean_scales is None else drawn.mean_scales[who]
            noise_scale = 1.0 if drawn.noise_scales is None else drawn.noise_scales[who]
            found.append(mean_scale * means[index] + noise_scale * drawn.sigma * eps)
        return found


def _update(entry: WeightEntry, past: list[Tensor], mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
    """The step of one log entry, [horizon, d]. float64 weights, zero-weight particles are not regenerated.

    past: v of the entry's elites, [horizon, d] each.
    """
    import torch

    kept = [i for i, w in enumerate(entry.weights) if w > 0]
    pick = lambda values, fill: [values[i] if values is not None else fill for i in kept]  # noqa: E731
    at = lambda values: torch.tensor(values, dtype=torch.float64, device=source.device)  # noqa: E731
    lengths = [*pick(entry.lengths, horizon), *(elite.length for elite in entry.elites)]
    reach = min(horizon, max(lengths, default=0))  # nothing moves where nobody lived
    steps = torch.arange(reach, device=source.device)  # [t]
    live = steps[None, :] < at(lengths)[:, None]  # [kept + elites, t]
    w = at([*pick(entry.weights, 0.0), *(elite.weight for elite in entry.elites)])[:, None] * live
    total = w.sum(0)  # [t]
    w = torch.where(total > 0, w / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    w, elite_weight = w[: len(kept)], w[len(kept) :]
    eps = signed_noise(source, entry.iteration, kept, reach, entry.antithetic)  # [kept, t, d]
    noise_weight = (w * at(pick(entry.noise_scales, 1.0))[:, None] * entry.sigma).to(eps.dtype)
    mean_weight = (w * at(pick(entry.mean_scales, 1.0))[:, None]).sum(0) - (total > 0).double()  # [t]
    drift = torch.zeros_like(mean)  # [horizon, d]
    drift[:reach] = torch.einsum("nt,ntd->td", noise_weight, eps)
    drift[:reach] += mean_weight.to(eps.dtype)[:, None] * mean[:reach]
    for v, share in zip(past, elite_weight, strict=True):
        drift[:reach] += share.to(eps.dtype)[:, None] * v[:reach]
    return entry.step_size * drift


def signed_noise(
    source: MeanSource, iteration: int, particles: Sequence[int], horizon: int, antithetic: bool
) -> Tensor:
    """Noise of given particles, float32 [len(particles), horizon, d]. Antithetic: 2j+1 is the mirror image of 2j."""
    if not antithetic:
        return source.noise(iteration, particles, horizon)
    eps = source.noise(iteration, [i - i % 2 for i in particles], horizon)
    signs = eps.new_tensor([-1.0 if i % 2 else 1.0 for i in particles])
    return eps * signs[:, None, None]
