"""The plain engine: one request at a time, every row to the end, one cache per row. The reference of every other path.

The prompt is prefilled once a request and its cache copied to all rows; each step runs the body on [rows, 1] tokens,
adds the control to the pre-logits and picks. Rows that ended run on and are not read.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aisp_ray.config import locate
from aisp_ray.controls.laws import Feedback, OpenLoop
from aisp_ray.engine.base import Engine, RolloutRequest, StopRules, broken_logits
from aisp_ray.engine.draws import BROKEN, branch, pick, supported
from aisp_ray.engine.means import Source
from aisp_ray.lm.head import Head
from aisp_ray.lm.memory import free_bytes
from aisp_ray.lm.prefixes import Prefix, PrefixStore, bytes_of, read_cache
from aisp_ray.noise import normal, split_key, uniform
from aisp_ray.types import Rollout, Rollouts


@dataclass(slots=True)
class _Row:
    """One particle being decoded, and what is summed over its generated positions."""

    particle: int
    prefix: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    inner: float = 0.0
    square: float = 0.0
    logprob: float = 0.0
    token_kl: float = 0.0
    first_logit: float = math.nan
    prelogits: list[Tensor] = field(default_factory=list)


class PlainEngine(Engine):
    """`engine.base.Engine`, plainly. `decode` turns token ids to text; only stop strings need it."""

    kind = "plain"

    def __init__(self, model: Any, decode: Callable[[Sequence[int]], str] | None = None):
        self.model = model.eval()
        self.head = Head(model)
        self.device = model.device
        self._noise_scale = round(self.head.noise_scale(), 4)
        self._decode = decode
        self._queue: deque[tuple[int, RolloutRequest]] = deque()
        self._next_ticket = 0
        self._row_steps = self._useful_row_steps = 0

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {
            "engine": self.kind,
            "dtype": str(self.head.dtype),
            "noise_scale": self._noise_scale,
            "torch": torch.__version__,
        }

    @property
    def num_pending(self) -> int:
        return len(self._queue)

    def submit(self, request: RolloutRequest) -> int:
        request.check(self._decode)
        self._next_ticket += 1
        self._queue.append((self._next_ticket, request))
        return self._next_ticket

    def step(self) -> list[tuple[int, Rollouts | Exception]]:
        if not self._queue:
            return []
        ticket, request = self._queue.popleft()
        try:
            return [(ticket, self.run(request))]
        except Exception as error:
            return [(ticket, error)]

    def stats(self) -> dict[str, float]:
        return {"row_steps": float(self._row_steps), "useful_row_steps": float(self._useful_row_steps)}

    @torch.no_grad()
    def run(self, request: RolloutRequest) -> Rollouts:
        """One request from prefill to the last row's end."""
        started = time.perf_counter()
        proposal = request.proposal
        particles = request.particles if request.particles is not None else tuple(range(proposal.num_samples))
        prefixes = proposal.prefixes or ((),) * proposal.num_samples
        rows = [_Row(particle, tuple(prefixes[particle])) for particle in particles]
        mean = self._mean(request)
        law = _feedback(request, self.device, self.head.dim)
        cache, z, hit = self._prefill(request.prompt_ids)
        cache.reorder_cache(torch.zeros(len(rows), dtype=torch.int64, device=self.device))
        z = z.expand(len(rows), -1)  # [rows, d]
        for t in range(request.max_new_tokens):
            tokens = self._advance(request, rows, z, t, (mean, law))
            if all(row.finish for row in rows) or t == request.max_new_tokens - 1:
                break
            position = torch.full((len(rows), 1), len(request.prompt_ids) + t, device=self.device)
            out = self.model.base_model(
                input_ids=tokens[:, None], past_key_values=cache, position_ids=position, use_cache=True
            )
            z = out.last_hidden_state[:, -1]
        norm = 0.0 if mean is None else float(mean.double().norm())
        items = tuple(self._result(row, request) for row in rows)
        return Rollouts(
            proposal.iteration, items, len(request.prompt_ids), norm, time.perf_counter() - started, prefix_hit=hit
        )

    def _prefill(self, prompt_ids: tuple[int, ...]) -> tuple[Any, Tensor, bool]:
        """The prompt's cache, free to be changed, its last pre-logits [1, d], and whether it was kept from before."""
        out = self.model.base_model(input_ids=torch.tensor([prompt_ids], device=self.device), use_cache=True)
        return out.past_key_values, out.last_hidden_state[:, -1], False

    def _mean(self, request: RolloutRequest) -> Tensor | None:
        control = request.proposal.control
        if not isinstance(control, OpenLoop) or control.mean is None:
            return None
        return control.mean.fold(self.source(request), control.reach)  # [t, d]

    def source(self, request: RolloutRequest) -> Source:
        """What a mean of this request's prompt is rebuilt from."""
        return Source(request.key, self.head, self.device, lambda ids: self.replay(request.prompt_ids, ids))

    @torch.no_grad()
    def replay(self, prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        """Base pre-logits of given responses by teacher forcing, float32 [num_tokens, d] each."""
        found = []
        for response in responses:
            ids = torch.tensor([[*prompt_ids, *response[:-1]]], device=self.device)
            hidden = self.model.base_model(input_ids=ids).last_hidden_state[0]
            found.append(hidden[len(prompt_ids) - 1 :].float())
        return found

    def control(self, request: RolloutRequest, rows: list[_Row], z: Tensor, t: int, known: tuple) -> tuple:
        """(u, v) at generated position t: the mean part and all that is added, float32 [rows, d] or None."""
        control, (mean, law) = request.proposal.control, known
        if t >= control.reach or not isinstance(control, OpenLoop | Feedback):
            return None, None
        if isinstance(control, Feedback):
            u = law(z.float())
            return u, u
        u = z.new_zeros(z.shape, dtype=torch.float32) if mean is None else mean[t].expand(len(rows), -1)
        if control.sigma == 0:
            return u, u
        who = torch.tensor([row.particle for row in rows], device=self.device)
        return u, u + control.sigma * normal(*self._names(request, who, t), self.head.dim)

    def _names(self, request: RolloutRequest, who: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        key = split_key([request.key], self.device).expand(len(who), 2)
        return key, torch.full_like(who, request.proposal.iteration), who, torch.full_like(who, t)

    def _advance(self, request: RolloutRequest, rows: list[_Row], z: Tensor, t: int, known: tuple) -> Tensor:
        """Pick position t of every row. Returns its token ids [rows]."""
        proposal, stop = request.proposal, request.stop
        u, v = self.control(request, rows, z, t, known)
        added = v
        if v is not None and isinstance(proposal.control, OpenLoop):
            added = v * proposal.control.factor(t)
        logits = self.head(z if added is None else z.float() + added)  # [rows, V]
        want_base = bool(proposal.want & {"logprob", "token_kl"}) or proposal.sampling.branch_first
        within = proposal.sampling.support_top_p
        base = self.head(z) if v is not None and (want_base or within < 1) else logits
        allowed = logits
        if t < stop.min_new_tokens and stop.token_ids:
            allowed = logits.clone()
            allowed[:, list(stop.token_ids)] = -torch.inf
        if within < 1:
            allowed = supported(allowed, base, within)
        who = torch.tensor([row.particle for row in rows], device=self.device)
        draws = uniform(*self._names(request, who, t)) if proposal.sampling.temperature > 0 else None
        picked = pick(allowed, proposal.sampling, draws)
        if proposal.sampling.branch_first:
            first = torch.tensor([len(row.prefix) == t for row in rows], device=self.device)
            picked = torch.where(first, branch(allowed, who), picked)
        forced = [row.prefix[t] if t < len(row.prefix) else None for row in rows]
        tokens = [p if f is None else f for p, f in zip(picked.tolist(), forced, strict=True)]
        for row, token in zip(rows, tokens, strict=True):
            if token == BROKEN and row.finish is None:
                raise broken_logits(str(self.head.dtype), row.particle, t)
        tokens = [max(token, 0) for token in tokens]  # rows that ended run on
        picked = torch.tensor(tokens, device=self.device)
        sums = _sums(u, v, logits, base, picked, proposal.want)
        for i, row in enumerate(rows):
            self._row_steps += 1
            if row.finish is None:
                self._useful_row_steps += 1
                row.tokens.append(tokens[i])
                if forced[i] is None:
                    self._account(row, i, sums, (base, z), request)
        return picked

    def _account(self, row: _Row, i: int, sums: dict, tensors: tuple, request: RolloutRequest) -> None:
        """Add position t to the row's sums and see whether it ended."""
        base, z = tensors
        row.inner += sums["inner"][i]
        row.square += sums["square"][i]
        row.logprob += sums["logprob"][i]
        row.token_kl += sums["token_kl"][i]
        wants_base = request.proposal.want & {"logprob", "token_kl"} or request.proposal.sampling.branch_first
        if len(row.tokens) == len(row.prefix) + 1 and wants_base:
            row.first_logit = float(base[i, row.tokens[-1]])
        if "prelogits" in request.proposal.want:
            row.prelogits.append(z[i].float().cpu())
        stop = request.stop
        if row.tokens[-1] in stop.token_ids:
            row.finish = "stop"
        elif len(row.tokens) >= stop.min_new_tokens and self._string_stops(row, stop):
            row.finish = "stop_string"

    def _string_stops(self, row: _Row, stop: StopRules) -> bool:
        if not stop.strings or self._decode is None:
            return False
        return stop.string_start(self._decode(row.tokens), row.tokens, self._decode) is not None

    def _result(self, row: _Row, request: RolloutRequest) -> Rollout:
        want = request.proposal.want
        return Rollout(
            particle=row.particle,
            text="",  # the policy decodes
            token_ids=tuple(row.tokens),
            finish_reason=row.finish or "length",
            num_generated_tokens=len(row.tokens) - min(len(row.prefix), len(row.tokens)),
            control_inner=row.inner,
            control_square=row.square,
            logprob=row.logprob if "logprob" in want else math.nan,
            token_kl=row.token_kl if "token_kl" in want else math.nan,
            first_logit=row.first_logit,
            prelogits=torch.stack(row.prelogits).numpy() if row.prelogits else None,
        )


class ExpandedEngine(PlainEngine):
    """The fallback for models whose cache cannot be shared: a prompt is still read once, its cache copied to every row.

    Public transformers calls only, so it runs whatever `generate` runs.
    """

    kind = "expanded"

    def __init__(self, model: Any, decode: Callable[[Sequence[int]], str] | None = None):
        super().__init__(model, decode)
        self.store = PrefixStore(self._read, free_bytes(self.device) // 5)

    def _read(self, ids: Sequence[int]) -> Prefix:
        cache, hidden = read_cache(self.model.base_model, ids, self.model.device)
        return Prefix(tuple(ids), cache, [], [], [], hidden, bytes_of(cache) + hidden.nbytes)

    def _prefill(self, prompt_ids: tuple[int, ...]) -> tuple[Any, Tensor, bool]:
        prefix, hit = self.store.acquire(prompt_ids)
        self.store.release(prefix)
        return copy.deepcopy(prefix.cache), prefix.hidden[None], hit

    def stats(self) -> dict[str, float]:
        return {
            **super().stats(),
            "prefix_hits": float(self.store.hits),
            "prefix_misses": float(self.store.misses),
            "prefix_bytes": float(self.store.num_bytes),
        }


def _feedback(request: RolloutRequest, device: Any, dim: int) -> Callable[[Tensor], Tensor] | None:
    control = request.proposal.control
    if not isinstance(control, Feedback):
        return None
    return locate(control.target)(device=device, dim=dim, **dict(control.options))


def _sums(u: Tensor | None, v: Tensor | None, logits: Tensor, base: Tensor, picked: Tensor, want: frozenset) -> dict:
    """Per-row terms of this position, as Python lists [rows]."""
    zero = [0.0] * len(picked)
    found = {"inner": zero, "square": zero, "logprob": zero, "token_kl": zero}
    if u is not None and v is not None:
        found["inner"] = (u.double() * v.double()).sum(-1).tolist()
        found["square"] = u.double().square().sum(-1).tolist()
    if want & {"logprob", "token_kl"}:
        log_base = base.log_softmax(-1)  # [rows, V]
        found["logprob"] = log_base.gather(1, picked[:, None]).squeeze(1).double().tolist()
        if "token_kl" in want:
            log_steered = logits.log_softmax(-1)
            found["token_kl"] = (log_steered.exp() * (log_steered - log_base)).sum(-1).double().tolist()
    return found
