"""A mean as the log of its importance weights: what a method ships instead of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

NOISE_ELEMENTS = 1 << 25  # numbers of noise that an update of a mean holds at a time, 128 MiB


class MeanSource(Protocol):
    """What a policy offers to whoever rebuilds a mean on its device."""

    dim: int
    device: Any

    def noise(self, iteration: int, particles: Sequence[int], horizon: int, start: int = 0) -> Tensor:
        """Standard normal noise of this prompt at positions from `start` to the horizon, float32
        [len(particles), horizon - start, d]."""

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
        """The description of the mean before the last update (where cached, the fold continues from it), or None."""

    def advance(self, mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
        """One update: from the parent's mean [horizon, d] to this one's."""


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One iteration of a weight log: enough to redo the update of the mean. Particle i drew v_i = U + sigma * eps_i."""

    iteration: int
    weights: tuple[float, ...]  # [n], sum to 1
    lengths: tuple[int, ...]  # [n] live positions of each particle
    sigma: float
    start: int = 0  # positions before it were given to all particles and keep their mean


@dataclass(frozen=True, slots=True)
class WeightLog:
    """A mean as the log of its updates, U <- sum_i w_it v_it per live position.

    w_it are the weights renormalised over the particles that still lived at position t; where none did, U stays.
    """

    entries: tuple[WeightEntry, ...] = ()

    def fold(self, source: MeanSource, horizon: int) -> Tensor:
        import torch

        mean = torch.zeros(horizon, source.dim, device=source.device)
        for entry in self.entries:
            mean = mean + _update(entry, mean, source, horizon)
        return mean

    def parent(self) -> WeightLog | None:
        return WeightLog(self.entries[:-1]) if self.entries else None

    def advance(self, mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
        return mean + _update(self.entries[-1], mean, source, horizon)


def _update(entry: WeightEntry, mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
    """The step of one log entry, [horizon, d]. float64 weights; noise of particles without weight is not generated."""
    import torch

    kept = [i for i, w in enumerate(entry.weights) if w > 0]
    at = lambda values: torch.tensor(values, dtype=torch.float64, device=source.device)[:, None]  # noqa: E731
    lengths = [entry.lengths[i] for i in kept]
    reach = min(horizon, max(lengths, default=0))  # nothing moves where nobody lived
    steps = torch.arange(reach, device=source.device)  # [t]
    live = (steps[None, :] < at(lengths)) & (steps >= entry.start)  # [kept, t]
    w = at([entry.weights[i] for i in kept]) * live
    total = w.sum(0)  # [t]
    w = torch.where(total > 0, w / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    mean_weight = w.sum(0) - (total > 0).double()  # [t]
    drift = torch.zeros_like(mean)  # [horizon, d]
    size = max(NOISE_ELEMENTS // (max(len(kept), 1) * source.dim), 1)
    for start in range(0, reach, size):
        stop = min(start + size, reach)
        eps = source.noise(entry.iteration, kept, stop, start)  # [kept, t, d]
        scaled = (w[:, start:stop] * entry.sigma).to(eps.dtype)
        drift[start:stop] = torch.einsum("nt,ntd->td", scaled, eps)
    drift[:reach] += mean_weight.to(drift.dtype)[:, None] * mean[:reach]
    return drift
