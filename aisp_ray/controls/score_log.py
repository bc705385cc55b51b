"""A mean that moves by score-function gradients: MISVO's control, rebuilt on the policy's device.

Shapes: K particles, S reference responses, t horizon, d pre-logit width, V vocabulary. What the method logs are token
ids and advantages; the gradients are contracted here, from pre-logits that one teacher-forced pass gives back. All
products with the head are matrix-free (a vector-Jacobian or Jacobian-vector product of the model's own head), so
biases, caps and scaling count, and no [t, d, d] matrix exists. Memory is bounded by chunks over time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from aisp_ray.controls.weight_log import MeanSource

PENALTIES = ("fisher", "kl", "l2", "none")
FISHERS = ("reference", "prefixes", "on_policy")
CHUNK_ELEMENTS = 2**24  # logits held at a time in float32, 64 MiB

Head = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True)
class ScoreEntry:
    """One iteration: the responses drawn under the mean before it, and how much better each was than the others."""

    token_ids: tuple[tuple[int, ...], ...]  # [K] responses
    advantages: tuple[float, ...]  # [K] reward units


@dataclass(frozen=True, slots=True)
class ScoreLog:
    """U as the log of its steps, u_t <- u_t + step_size * (g_t - strength * penalty_t); a `controls.MeanSpec`.

    The reference prefixes of the penalty are the first entry's responses, which were drawn at U = 0; with `fisher` of
    "prefixes" or "on_policy" they are the last entry's, and "on_policy" also takes the Fisher matrix at U, not at 0.
    """

    entries: tuple[ScoreEntry, ...] = ()
    step_size: float = 0.1
    strength: float = 1.0
    penalty: str = "fisher"
    temperature: float = 1.0
    fisher: str = "reference"

    def fold(self, source: MeanSource, horizon: int) -> Tensor:
        import torch

        mean = torch.zeros(horizon, source.dim, device=source.device)
        for k in range(1, len(self.entries) + 1):
            mean = replace(self, entries=self.entries[:k]).advance(mean, source, horizon)
        return mean

    def parent(self) -> ScoreLog | None:
        return replace(self, entries=self.entries[:-1]) if self.entries else None

    def advance(self, mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
        import torch

        # an engine may fold in inference mode, whose tensors autograd refuses
        with torch.inference_mode(False), torch.no_grad():
            return self._advance(mean.clone(), source, horizon)

    def _advance(self, mean: Tensor, source: MeanSource, horizon: int) -> Tensor:
        import torch

        entry = self.entries[-1]
        drawn = _Responses.of(entry.token_ids, source, horizon)
        reference = drawn
        if len(self.entries) > 1 and self.penalty in ("fisher", "kl") and self.fisher == "reference":
            reference = _Responses.of(self.entries[0].token_ids, source, horizon)
        advantages = torch.tensor(entry.advantages, device=source.device)
        moved = mean.clone()
        rows = max(len(drawn.hidden), len(reference.hidden))
        for part in _chunks(horizon, rows * source.head_weight().shape[0]):
            u = mean[part]
            step = reward_gradient(source.head, u, drawn.at(part), advantages, self.temperature)
            if self.penalty != "none":
                step = step - self.strength * self._penalty(source.head, u, reference.at(part))
            moved[part] = u + self.step_size * step
        return moved

    def _penalty(self, head: Head, u: Tensor, reference: _Responses) -> Tensor:
        if self.penalty == "l2":
            return u
        if self.penalty == "kl":
            return kl_gradient(head, u, reference, self.temperature)
        at = u if self.fisher == "on_policy" else None
        return fisher_product(head, u, reference, self.temperature, at)


@dataclass(frozen=True, slots=True)
class _Responses:
    """Teacher-forced responses over (a part of) the horizon."""

    hidden: Tensor  # [K, t, d] base pre-logits
    tokens: Tensor  # [K, t] the token picked from each
    live: Tensor  # [K, t] 1 where the response has a token

    @classmethod
    def of(cls, token_ids: Sequence[Sequence[int]], source: MeanSource, horizon: int) -> _Responses:
        import torch

        hidden = torch.zeros(len(token_ids), horizon, source.dim, device=source.device)
        tokens = torch.zeros(len(token_ids), horizon, dtype=torch.int64, device=source.device)
        live = torch.zeros(len(token_ids), horizon, device=source.device)
        for i, (ids, rows) in enumerate(zip(token_ids, source.replay(token_ids), strict=True)):
            length = min(len(ids), horizon)
            hidden[i, :length] = rows[:length]
            tokens[i, :length] = torch.tensor(ids[:length], device=source.device)
            live[i, :length] = 1.0
        return cls(hidden, tokens, live)

    def at(self, part: slice) -> _Responses:
        return _Responses(self.hidden[:, part], self.tokens[:, part], self.live[:, part])


def reward_gradient(head: Head, u: Tensor, drawn: _Responses, advantages: Tensor, temperature: float) -> Tensor:
    """g_t = 1/K sum_i A_i grad_u log pi_u(y_t^i), = 1/K sum_i A_i W^T (e_y - p) for a linear head. [t, d].

    Entesari et al., "Minimally Invasive Steering of Language Models", step 3. A dead position contributes nothing.
    """
    import torch

    with torch.enable_grad():
        u = u.detach().requires_grad_()
        log_p = (head(drawn.hidden + u) / temperature).log_softmax(-1)  # [K, t, V]
        log_y = log_p.gather(-1, drawn.tokens[..., None]).squeeze(-1)  # [K, t]
        objective = (advantages[:, None] * drawn.live * log_y).sum() / len(advantages)
        return torch.autograd.grad(objective, u)[0]


def fisher_product(
    head: Head, u: Tensor, reference: _Responses, temperature: float, at: Tensor | None = None
) -> Tensor:
    """F_t u_t with F_t the mean over live reference prefixes of J^T (diag(p) - p p^T) J. [t, d].

    J is the Jacobian of the logits over temperature (W for a linear head), p the probabilities, both of the base policy
    or, with `at` [t, d], of the one whose pre-logits are moved by it.
    """
    import torch

    logits_of = lambda z: head(z) / temperature  # noqa: E731
    z = reference.hidden.detach() if at is None else (reference.hidden + at).detach()
    with torch.enable_grad():
        logits, v = torch.autograd.functional.jvp(logits_of, z, u.expand_as(z).contiguous())  # [S, t, V]
        p = logits.softmax(-1)
        w = p * (v - (p * v).sum(-1, keepdim=True)) * _share(reference.live)[..., None]
        z = z.clone().requires_grad_()
        return torch.autograd.grad(logits_of(z), z, w.detach())[0].sum(0)


def kl_gradient(head: Head, u: Tensor, reference: _Responses, temperature: float) -> Tensor:
    """Gradient in u_t of the mean over live reference prefixes of KL(pi_u | pi_0), exact. [t, d]."""
    import torch

    with torch.no_grad():
        log_base = (head(reference.hidden) / temperature).log_softmax(-1)  # [S, t, V]
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        log_p = (head(reference.hidden + u) / temperature).log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_base)).sum(-1)  # [S, t]
        return torch.autograd.grad((kl * _share(reference.live)).sum(), u)[0]


def _share(live: Tensor) -> Tensor:
    """1 / (number alive at t) where alive, so that a sum over responses is a mean over the live ones. [S, t]."""
    return live / live.sum(0).clamp_min(1.0)


def _chunks(horizon: int, elements_a_step: int) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // max(1, elements_a_step))
    for start in range(0, horizon, size):
        yield slice(start, min(horizon, start + size))
