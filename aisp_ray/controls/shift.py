"""One shift of the pre-logits for all positions, fitted to given responses on the policy's device.

Shapes: N tokens of all responses together, d pre-logit width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from aisp_ray.controls.weight_log import MeanSource

CHUNK_ELEMENTS = 2**24  # logits held at a time in float32, 64 MiB
_HISTORY = 10  # steps that L-BFGS remembers


@dataclass(frozen=True, slots=True)
class Shift:
    """The shift s under which these responses are most likely; a `controls.MeanSpec` that is s at every position.

    s = argmin -1/N sum_t log softmax(head(z_t + s) / temperature)[y_t] + strength / 2 |s|^2, over the pre-logits z_t
    and tokens y_t of all responses, by L-BFGS from 0. For a linear head the objective is strictly convex.
    """

    token_ids: tuple[tuple[int, ...], ...]  # responses
    temperature: float = 1.0
    strength: float = 1e-3  # above 0
    steps: int = 50  # L-BFGS steps at most

    def fold(self, source: MeanSource, horizon: int) -> Tensor:
        import torch

        # an engine may fold in inference mode, whose tensors autograd refuses
        with torch.inference_mode(False), torch.enable_grad():
            return self._fit(source).expand(horizon, source.dim).clone()

    def parent(self) -> None:
        return None

    def advance(self, mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
        """Not a step but the whole fit: there is nothing before it."""
        return self.fold(source, horizon)

    def _fit(self, source: MeanSource) -> Tensor:
        import torch

        hidden = torch.cat([rows.clone() for rows in source.replay(self.token_ids)]).detach()  # [N, d]
        tokens = torch.tensor([token for ids in self.token_ids for token in ids], device=source.device)  # [N]
        size = max(1, CHUNK_ELEMENTS // source.head_weight().shape[0])

        def objective(shift: Tensor) -> tuple[float, Tensor]:
            value, gradient = 0.5 * self.strength * float(shift @ shift), self.strength * shift
            for start in range(0, len(tokens), size):
                part, moved = slice(start, start + size), shift.clone().requires_grad_()
                logits = source.head(hidden[part] + moved) / self.temperature  # [part, V]
                loss = torch.nn.functional.cross_entropy(logits, tokens[part], reduction="sum") / len(tokens)
                value, gradient = value + float(loss.detach()), gradient + torch.autograd.grad(loss, moved)[0]
            return value, gradient

        return minimum(objective, torch.zeros(source.dim, device=source.device), self.steps)


def minimum(objective: Callable[[Tensor], tuple[float, Tensor]], x: Tensor, steps: int) -> Tensor:
    """Where a smooth convex objective (its value and gradient) is smallest, by L-BFGS with backtracking from x [d].

    Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 3.1. The import of `torch.optim`'s costs seconds.
    """
    value, gradient = objective(x)
    pairs: list[tuple[Tensor, Tensor]] = []  # of steps and changes of the gradient, the newest last
    for _ in range(steps):
        down = _direction(gradient, pairs)
        slope, rate = float(gradient @ down), 1.0
        while (found := objective(x - rate * down))[0] > value - 1e-4 * rate * slope and rate > 1e-4:
            rate /= 2
        if found[0] >= value:  # as low as this precision gets
            break
        step, change = -rate * down, found[1] - gradient
        if float(step @ change) > 0:
            pairs = [*pairs, (step, change)][-_HISTORY:]
        x, value, gradient = x + step, *found
    return x


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient times an estimate of the inverse Hessian: the two loops of L-BFGS."""
    q, shares = gradient.clone(), []
    for step, change in reversed(pairs):
        shares.append((step @ q) / (step @ change))
        q = q - shares[-1] * change
    if pairs:
        step, change = pairs[-1]
        q = q * (step @ change) / (change @ change)
    else:
        q = q / gradient.norm().clamp_min(1.0)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        q = q + step * (share - (change @ q) / (step @ change))
    return q
