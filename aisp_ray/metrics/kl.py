"""How far a control moves the policy: three estimators that differ, and say which they are.

- gaussian: KL(N(U, sigma^2 I) | N(0, sigma^2 I)) = |U|^2 / (2 sigma^2), in the space of controls. An upper bound on
  the divergence of responses when the decode is a function of the control (data processing), usually a loose one.
- token_reference: sum over positions of KL(softmax(head(z + u)) | softmax(head(z))) on prefixes that the *base* policy
  drew. What MISVO reports as KL_ref; not a divergence of sequences.
- token_steered: the same sum on prefixes drawn *under the control*. With sampling at temperature 1 its mean is the KL
  divergence of the two policies' sequences.

A greedy decode is deterministic, so the divergence of what it emits is infinite; the token estimators describe the
distribution it takes the argmax of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from aisp_ray.controls.laws import OpenLoop
    from aisp_ray.controls.weight_log import MeanSource, MeanSpec


def gaussian(control_norm: float, sigma: float) -> float:
    """|U|^2 / (2 sigma^2), nats. control_norm: Frobenius, the column of that name. NaN at sigma 0."""
    return control_norm**2 / (2 * sigma**2) if sigma > 0 else math.nan


def token(
    source: MeanSource,
    mean: MeanSpec,
    horizon: int,
    token_ids: Sequence[Sequence[int]],
    control: OpenLoop | None = None,
) -> list[float]:
    """Summed token KL of given responses under a mean, nats, one a response.

    token_ids drawn from the base policy give token_reference, drawn under the mean token_steered. One teacher-forced
    pass; positions at or after the horizon add nothing. control: the law that the mean belongs to,
    where it has a decay.
    """
    import torch

    u = mean.fold(source, horizon)  # [t, d]
    if control is not None:
        u = control.added(u)
    found = []
    with torch.no_grad():
        for z in source.replay(token_ids):
            length = min(len(z), horizon)
            found.append(float(token_kl(source.head(z[:length] + u[:length]), source.head(z[:length])).sum()))
    return found


def token_kl(steered: Tensor, base: Tensor) -> Tensor:
    """KL(softmax(steered) | softmax(base)) over the last axis, float64. [..., V] -> [...]."""
    log_p, log_q = steered.double().log_softmax(-1), base.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
