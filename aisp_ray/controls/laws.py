"""Control laws: what is added to a pre-logit, z -> z + u, at the input of the LM head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aisp_ray.types import Control

if TYPE_CHECKING:
    from torch import Tensor


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
