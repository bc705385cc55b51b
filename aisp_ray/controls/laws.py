"""Control laws: what is added to a pre-logit, z -> z + u, at the input of the LM head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aisp_ray.types import Control

if TYPE_CHECKING:
    from torch import Tensor

    from aisp_ray.controls.weight_log import MeanSpec


@dataclass(frozen=True, slots=True)
class OpenLoop(Control):
    """v_t = u_t + sigma * eps_t at positions t < horizon, then nothing.

    sigma: standard deviation (the papers quote sigma^2). mean None is zero. sigma 0 applies the mean alone (MISVO).
    decay: what is added at t is scale decay^t v_t, so that the noise shrinks (or grows) along the response. All else
    (mean, weight log, control cost, norms) lives in the coordinates v: they have the density ratios and the KL of what
    is added, because the map is fixed and invertible.
    scale: None is the scale at which sigma 1 moves this model's logits by 1; the policy puts the number in its place.
    """

    mean: MeanSpec | None = None
    sigma: float = 0.0
    decay: float = 1.0
    scale: float | None = 1.0

    def scaled_for(self, noise_scale: float) -> OpenLoop:
        """The law with a number in place of a scale of None.

        noise_scale: `lm.head.Head.noise_scale` of the model that it steers. Three digits of it count, so that machines
        and engines whose last bits differ add the same.
        """
        return replace(self, scale=1 / float(f"{noise_scale:.3g}"))

    def factor(self, t: int) -> float:
        """Of what is added at position t. Raises ValueError for a law without a number as its scale."""
        if self.scale is None:
            raise ValueError("the law's scale is that of a model's logits: call scaled_for(engine's noise_scale)")
        return self.scale * self.decay**t

    def added(self, v: Tensor) -> Tensor:
        """What v, float32 [t, d] at positions 0, 1, ..., adds to the pre-logits."""
        import torch

        factor = torch.tensor([self.factor(t) for t in range(len(v))], dtype=v.dtype, device=v.device)
        return factor[:, None] * v


@dataclass(frozen=True, slots=True)
class Feedback(Control):
    """u_t = law(z_t): a law loaded on the policy's device from `target` ("module:function") with `options`.

    The function is called once, `law = function(device=..., dim=..., **options)`; `law(z)` maps pre-logits
    [rows, d] to u [rows, d].
    """

    target: str = ""
    options: tuple[tuple[str, Any], ...] = ()
