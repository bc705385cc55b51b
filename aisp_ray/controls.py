"""Control laws: what is added to the pre-logits, and how a mean is described without shipping a tensor.

Shapes: n particles, t control horizon, d pre-logit width. torch is imported inside functions only: methods build
controls while a command line is being checked, before anything heavy loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from aisp_ray.types import Control

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


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Noise shaped by the LM head: what is added to a pre-logit is S v, with S [d, d] made from the head's W [V, d].

    C = 1/V sum_k (w_k - m)(w_k - m)^T, m the mean row of W: |x|_C^2 is how far x moves the logits apart, and C is the
    Fisher information of the next token at uniform probabilities. With a = tr(C)/d,
    S = c (C + ridge a I)^(-1/2), symmetric, and c such that tr(S C S) = tr(C).

    Isotropic noise moves the logits mostly along the few directions in which W is large (often how common a token is);
    under S every direction that the head can tell apart gets the same variance. By the choice of c the logits' total
    variance is that of isotropic noise of the same sigma. `ridge` keeps noise out of directions that W hardly reads.
    A bias of the head adds the same to all logits whatever v is, and a common shift of W's rows none that softmax
    sees: neither changes S.

    Everything but the sum z + S v lives in the whitened coordinates v: mean, weight log, control cost and norms. They
    are the right ones: densities of N(S u, sigma^2 S S^T) have the ratios, and the KL |u|^2 / (2 sigma^2), of
    N(u, sigma^2 I), and the update is linear, so that S (sum_i w_i v^i) is the mean of what was added.
    """

    ridge: float = 0.1  # above 0, in units of the mean eigenvalue of C

    def matrix(self, weight: Tensor) -> Tensor:
        """S, float32 [d, d] on the device of W = weight [V, d]. Computed in float64 but for the products of W.

        Raises:
            ValueError: W is quantised to integers.
        """
        import torch

        if not weight.is_floating_point():
            raise ValueError(f"noise_shape=head needs an LM head in floating point; this one is {weight.dtype}")
        vocabulary, dim = weight.shape
        mean = sum(part.double().sum(0) for part in weight.split(8192)) / vocabulary  # [d]
        moment = torch.zeros(dim, dim, dtype=torch.float64, device=weight.device)
        for part in weight.split(8192):
            rows = (part.double() - mean).float()  # [8192, d]
            moment += (rows.T @ rows).double() / vocabulary
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp_min(0.0)
        stretch = 1.0 / (values + self.ridge * values.mean())  # eigenvalues of S^2 / c^2
        stretch *= values.sum() / (stretch * values).sum()
        return ((vectors * stretch.sqrt()) @ vectors.T).float()


@dataclass(frozen=True, slots=True)
class OpenLoop(Control):
    """v_t = mean_scale_i * u_t + noise_scale_i * sigma * eps_t at positions t < horizon, then nothing.

    sigma: standard deviation (the papers quote sigma^2). mean None is zero. sigma 0 applies the mean alone (MISVO).
    shape: S v_t is added in place of v_t; None adds v_t itself. decay: what is added at t is multiplied by decay^t, so
    that the noise shrinks (or grows) along the response. As with a shape, all else lives in the coordinates v.
    """

    mean: Any = None  # MeanSpec | None
    sigma: float = 0.0
    mean_scales: tuple[float, ...] | None = None  # [n], None: ones
    noise_scales: tuple[float, ...] | None = None
    antithetic: bool = False
    shape: HeadShape | None = None
    decay: float = 1.0

    def added(self, v: Tensor, weight: Tensor) -> Tensor:
        """What v, float32 [t, d] at positions 0, 1, ..., adds to the pre-logits before W = weight [V, d], plainly."""
        import torch

        scale = torch.tensor([self.decay**t for t in range(len(v))], dtype=v.dtype, device=v.device)[:, None]
        return scale * (v if self.shape is None else v @ self.shape.matrix(weight))  # S is symmetric


@dataclass(frozen=True, slots=True)
class Feedback(Control):
    """u_t = law(z_t): a law loaded on the policy's device from `target` ("module:function") with `options`.

    The function is called once, `law = function(device=..., dim=..., **options)`; `law(z)` maps pre-logits
    [rows, d] to u [rows, d].
    """

    target: str = ""
    options: tuple[tuple[str, Any], ...] = ()
