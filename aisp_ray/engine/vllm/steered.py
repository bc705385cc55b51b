"""A proposal in a vLLM worker: what is added to its rows' pre-logits, which tokens they take, what is summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aisp_ray.controls.laws import Feedback, OpenLoop
from aisp_ray.engine.base import RolloutRequest
from aisp_ray.noise import normal, split_key, uniform

AHEAD = 16  # steps drawn in one call: the counter-based generator is some 200 tensor operations whatever it draws
_CHUNK = 16384  # Philox counters of one call on a CPU: its temporaries stay in the cache of a core
INNER, SQUARE, LOGPROB, TOKEN_KL, FIRST_LOGIT = range(5)  # columns of `Steered.terms`


@dataclass(slots=True)
class Drawn:
    """What is known of a row's next steps before they are decoded."""

    start: int  # the first of these positions
    added: Tensor | None  # float32 [S, d]: what its control adds to the pre-logits; None: nothing
    uniform: Tensor | None  # float64 [S]


class Steered:
    """One request on one worker. Row i is its i-th particle; t counts response positions."""

    def __init__(
        self,
        request: RolloutRequest,
        tools: tuple[Tensor | None, Callable[[Tensor], Tensor] | None],
        dim: int,
        device: Any,
    ):
        """tools: (mean U [horizon, d], feedback law), None where the control has none."""
        self.request, self.dim, self.device = request, dim, device
        self.mean, self.law = tools
        proposal = request.proposal
        who = request.particles if request.particles is not None else range(proposal.num_samples)
        prefixes = proposal.prefixes or ((),) * proposal.num_samples
        self.particles = list(who)
        self.given = [len(prefixes[particle]) for particle in self.particles]  # positions that are not generated
        self.stop_ids = torch.tensor(list(request.stop.token_ids), dtype=torch.int64, device=device)
        count, length = len(self.particles), request.max_new_tokens
        self.terms = torch.zeros(count, length, 5, dtype=torch.float64, device=device) if self.has_terms else None
        self.prelogits = torch.zeros(count, length, dim, device=device) if "prelogits" in proposal.want else None
        self.forced: list[Sequence[int]] | None = None  # per row the tokens that it must take: a replay
        self._broken = torch.full((count,), length, dtype=torch.int64, device=device)  # first position without a token
        self._drawn: list[Drawn | None] = [None] * count

    @property
    def control_norm(self) -> float:
        return 0.0 if self.mean is None else float(self.mean.double().norm())

    @property
    def wants_base(self) -> bool:
        """Whether the uncontrolled logits go into the sums."""
        proposal = self.request.proposal
        return bool(proposal.want & {"logprob", "token_kl"}) or proposal.sampling.branch_first

    @property
    def reads_base(self) -> bool:
        """Whether the uncontrolled logits are needed, be it for the choice of tokens only."""
        return self.wants_base or self.request.proposal.sampling.support_top_p < 1

    @property
    def has_terms(self) -> bool:
        """Whether a position has anything to sum."""
        return self.wants_base or self.mean is not None or self.law is not None

    @property
    def opens(self) -> bool:
        """Whether something known before decoding is added."""
        control = self.request.proposal.control
        return isinstance(control, OpenLoop) and control.reach > 0 and (control.sigma > 0 or self.mean is not None)

    def adds(self, t: int) -> bool:
        """Whether anything is added at position t."""
        control = self.request.proposal.control
        return t < control.reach and (self.law is not None or self.opens)

    # ------------------------------------------------------------ drawn ahead

    def drawn(self, rows: Sequence[int], steps: Sequence[int]) -> list[Drawn]:
        """What is drawn for these rows at these positions, drawn now where it is not there yet."""
        due = []
        for row, t in zip(rows, steps, strict=True):
            held = self._drawn[row]
            if held is None or not held.start <= t < held.start + AHEAD:
                due.append((row, t))
        if due:
            self._draw([row for row, _ in due], [t for _, t in due])
        return [held for row in rows if (held := self._drawn[row]) is not None]

    def _draw(self, rows: list[int], starts: list[int]) -> None:
        steps = torch.tensor(starts, device=self.device)[:, None] + torch.arange(AHEAD, device=self.device)  # [k, S]
        added = uniforms = None
        if self.opens and any(t < self.request.proposal.control.reach for t in starts):
            added = self._controls(rows, steps)
        if self.request.proposal.sampling.temperature > 0:
            uniforms = uniform(*self._names([self.particles[row] for row in rows], steps)).view(steps.shape)
        for i, row in enumerate(rows):
            self._drawn[row] = Drawn(
                starts[i], None if added is None else added[i], None if uniforms is None else uniforms[i]
            )

    def _controls(self, rows: list[int], steps: Tensor) -> Tensor:
        """What the open-loop control adds at `steps` [k, S], float32 [k, S, d]; its sums go into `terms`."""
        control = self.request.proposal.control
        assert isinstance(control, OpenLoop)
        live = steps < control.reach  # [k, S]
        v = torch.zeros(*steps.shape, self.dim, device=self.device)
        if self.mean is not None:
            u = self.mean[steps.clamp_max(len(self.mean) - 1)]  # [k, S, d]
            v = u
        if control.sigma > 0:
            v = v + control.sigma * self._noise([self.particles[row] for row in rows], steps)
        v = v * live[..., None]
        if self.mean is not None and self.terms is not None:
            u = u.double() * live[..., None]
            self._note(rows, steps, INNER, (u * v.double()).sum(-1))
            self._note(rows, steps, SQUARE, u.square().sum(-1))
        if control.decay != 1 or control.scale != 1:
            scale, decay = torch.tensor([control.scale, control.decay], dtype=torch.float64, device=self.device)
            v = v * (scale * decay.pow(steps))[..., None].float()
        return v

    def _note(self, rows: list[int], steps: Tensor, column: int, values: Tensor) -> None:
        assert self.terms is not None
        for i, row in enumerate(rows):
            start = int(steps[i, 0])
            part = self.terms[row, start : start + AHEAD, column]
            part.copy_(values[i, : len(part)])

    def _noise(self, who: list[int], steps: Tensor) -> Tensor:
        """Standard normal noise of particles at `steps` [k, S], float32 [k, S, d]."""
        key, iteration, particle, step = self._names(who, steps)
        size = max(_CHUNK * 4 // self.dim, 1) if steps.device.type == "cpu" else steps.numel()
        spans = [slice(i, i + size) for i in range(0, steps.numel(), size)]
        parts = [normal(key[at], iteration[at], particle[at], step[at], self.dim) for at in spans]
        return torch.cat(parts).view(*steps.shape, self.dim)

    def _names(self, who: list[int], steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width = steps.shape[1]
        key = split_key([self.request.key], self.device).expand(steps.numel(), 2)
        particle = torch.tensor(who, dtype=torch.int64, device=self.device).repeat_interleave(width)
        return key, torch.full_like(particle, self.request.proposal.iteration), particle, steps.flatten()

    # ------------------------------------------------------------ at a step

    def control(self, rows: Sequence[int], steps: Sequence[int], z: Tensor) -> Tensor | None:
        """What is added to these rows' pre-logits z [rows, d], float32; None: nothing to any of them."""
        control = self.request.proposal.control
        if isinstance(control, Feedback) and self.law is not None:
            live = torch.tensor([t < control.reach for t in steps], device=self.device)[:, None]
            u = torch.where(live, self.law(z.float()), 0.0)
            square = u.double().square().sum(-1)
            self.put(rows, steps, INNER, square)
            self.put(rows, steps, SQUARE, square)
            return u
        if not self.opens or all(t >= control.reach for t in steps):
            return None
        zero = z.new_zeros(self.dim, dtype=torch.float32)
        held = self.drawn(rows, steps)
        return torch.stack(
            [zero if d.added is None else d.added[t - d.start] for d, t in zip(held, steps, strict=True)]
        )

    def uniforms(self, rows: Sequence[int], steps: Sequence[int]) -> Tensor:
        """Their token uniforms, float64 [rows]."""
        held = self.drawn(rows, steps)
        return torch.stack([d.uniform[t - d.start] for d, t in zip(held, steps, strict=True) if d.uniform is not None])

    def put(self, rows: Sequence[int], steps: Sequence[int], column: int, values: Tensor) -> None:
        """Write values [rows] of a position; a position that is decoded twice (preempted) is written twice."""
        if self.terms is not None:
            self.terms[self._at(rows), self._at(steps), column] = values.double()

    def put_broken(self, rows: Sequence[int], steps: Sequence[int], broken: Tensor) -> None:
        """Keep where a row's logits are no numbers (`broken` [rows]), on the device: nothing waits for it."""
        at = self._at(rows)
        self._broken[at] = torch.where(broken, self._broken[at].minimum(self._at(steps)), self._broken[at])

    def broken(self) -> list[int]:
        """Per row the first position whose logits were NaN or infinite; the request's length where none was."""
        return [int(step) for step in self._broken.tolist()]

    def keep(self, rows: Sequence[int], steps: Sequence[int], z: Tensor) -> None:
        if self.prelogits is not None:
            self.prelogits[self._at(rows), self._at(steps)] = z.float()

    def _at(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
