"""What a vLLM worker is taught: an extension class whose methods the engine calls on every rank.

Arguments and results are pickled bytes, small: requests in, per-row sums out.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from aisp_ray.config import locate
from aisp_ray.controls.laws import Feedback, OpenLoop
from aisp_ray.engine.base import RolloutRequest
from aisp_ray.engine.means import Means, Source
from aisp_ray.engine.vllm.head import PlainHead
from aisp_ray.engine.vllm.seam import Seam
from aisp_ray.engine.vllm.steered import Steered
from aisp_ray.noise import normal, split_key

_REPLAY_BYTES = 512 << 20  # of replayed pre-logits that stay; those that one update needs stay whatever they take


class MissingReplayError(Exception):
    """A mean is made from pre-logits of responses that have to be decoded again first."""

    def __init__(self, responses: list[tuple[int, ...]]):
        super().__init__(f"{len(responses)} responses have to be replayed")
        self.responses = responses


class _State:
    """Everything that one worker keeps for us."""

    def __init__(self, runner: Any, device: Any):
        for name in ("model", "input_batch", "requests", "model_config", "kv_caches"):
            if not hasattr(runner, name):
                raise ValueError(f"{type(runner).__name__} of this vLLM has no `{name}`: it is not the runner we know")
        self.device = device
        self.dim = int(runner.model_config.get_hidden_size())
        self.seam = Seam(runner)
        self.head = PlainHead(runner.model)
        self.means = Means()
        self.laws: dict[Any, Callable[[Tensor], Tensor]] = {}
        self.replays: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def steered(self, request: RolloutRequest) -> Steered:
        """Raises MissingReplayError if the mean needs responses that were not decoded here."""
        control = request.proposal.control
        mean = law = None
        if isinstance(control, OpenLoop) and control.mean is not None and control.reach > 0:
            mean = self.means.get(SimpleNamespace(request=request), lambda: self._source(request))  # type: ignore
        if isinstance(control, Feedback):
            law = self._law(control)
        return Steered(request, (mean, law), self.dim, self.device)

    def _law(self, control: Feedback) -> Callable[[Tensor], Tensor]:
        name = (control.target, control.options)
        if name not in self.laws:
            self.laws[name] = locate(control.target)(device=self.device, dim=self.dim, **dict(control.options))
        return self.laws[name]

    def _source(self, request: RolloutRequest) -> Source:
        head: Any = _Lazy(self.head, self.dim)
        return Source(request.key, head, self.device, lambda ids: self._replay(request.prompt_ids, ids))

    def _replay(self, prompt: tuple[int, ...], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        names = [(prompt, tuple(ids)) for ids in responses]
        if missing := [ids for name in names if name not in self.replays for ids in [name[1]]]:
            raise MissingReplayError(list(dict.fromkeys(missing)))
        for name in names:
            self.replays[name] = self.replays.pop(name)  # the newest again
        return [self.replays[name] for name in names]

    def keep_replay(self, steered: Steered) -> None:
        assert steered.prelogits is not None
        assert steered.forced is not None
        for ids, rows in zip(steered.forced, steered.prelogits, strict=True):
            self.replays[(steered.request.prompt_ids, tuple(ids))] = rows[: len(ids)].clone()
        held = sum(rows.numel() * rows.element_size() for rows in self.replays.values())
        for name in list(self.replays)[: -4 * len(steered.forced)]:  # an update reads two sets of this size
            if held <= _REPLAY_BYTES:
                break
            rows = self.replays.pop(name)
            held -= rows.numel() * rows.element_size()


class _Lazy:
    """The head for sources: its weight is gathered only where a mean asks for it."""

    def __init__(self, head: PlainHead, dim: int):
        self._head, self.dim = head, dim

    def __call__(self, prelogits: Tensor) -> Tensor:
        return self._head(prelogits)

    @property
    def weight(self) -> Tensor:
        return self._head.weight


class Extension:
    """Becomes a base class of vLLM's worker (`worker_extension_cls`), so every name begins with aisp_."""

    def aisp_install(self) -> None:
        """Put the seam in place.

        Raises:
            ValueError: this runner is not the one that the seam is written for.
        """
        worker: Any = self
        self.aisp_state = _State(worker.model_runner, worker.device)

    def aisp_begin(self, ticket: int, given: bytes) -> bytes:
        """A request, with its forced tokens or None. Returns (norm of the mean, None) or (None, responses to replay).

        Raises:
            ValueError: the law or the mean cannot be made from this request.
        """
        request, forced = pickle.loads(given)
        state = self.aisp_state
        try:
            with torch.no_grad():
                steered = state.steered(request)
        except MissingReplayError as missing:
            return pickle.dumps((None, missing.responses))
        steered.forced = forced
        state.seam.steered[ticket] = steered
        return pickle.dumps((steered.control_norm, None))

    def aisp_end(self, ticket: int, keep: bool) -> bytes:
        """Forget a request. Returns its sums [rows, T, 5] and pre-logits [rows, T, d] as arrays, each or None, and
        per row the first position whose logits were broken.

        keep: it was a replay, whose pre-logits stay here.
        """
        steered = self.aisp_state.seam.steered.pop(ticket)
        broken = steered.broken()
        if min(broken) < steered.request.max_new_tokens:
            self.aisp_state.seam.clean()
        if keep:
            self.aisp_state.keep_replay(steered)
            return pickle.dumps((None, None, broken))
        as_array = lambda part: None if part is None else part.cpu().numpy()  # noqa: E731
        return pickle.dumps((as_array(steered.terms), as_array(steered.prelogits), broken))

    def aisp_logits(self, given: bytes) -> bytes:
        """vLLM's own logits [rows, V] of pre-logits [rows, d], as pickled arrays."""
        state, worker = self.aisp_state, cast("Any", self)
        z = torch.from_numpy(pickle.loads(given)).to(state.device, worker.model_runner.model_config.dtype)
        with torch.inference_mode():
            logits = state.seam.base(z)
        return pickle.dumps(None if logits is None else logits.float().cpu().numpy())

    def aisp_noise_scale(self, draws: int = 16) -> float:
        """As `Head.noise_scale`: what noise of sigma 1 on the pre-logits adds to vLLM's logits (standard deviation)."""
        state, worker = self.aisp_state, cast("Any", self)
        rows = torch.arange(draws, device=state.device)
        zero = torch.zeros_like(rows)
        noise = normal(split_key([0], state.device).expand(draws, 2), zero, rows, zero, state.dim)
        noise = noise.to(worker.model_runner.model_config.dtype)
        with torch.inference_mode():
            logits, base = state.seam.base(noise), state.seam.base(torch.zeros_like(noise[:1]))
        return math.nan if logits is None or base is None else float((logits - base).float().std(dim=-1).mean())

    def aisp_trust_head(self, trusted: bool) -> None:
        """Whether means may use W as we read it."""
        self.aisp_state.head.trusted = trusted

    def aisp_head_agrees(self, seed: int, allowed: float) -> bool:
        """Whether W, bias, cap and scale as we read them give vLLM's logits, on random pre-logits."""
        state, worker = self.aisp_state, cast("Any", self)
        z = torch.randn(4, state.dim, generator=torch.Generator().manual_seed(seed))
        z = z.to(state.device, worker.model_runner.model_config.dtype)
        with torch.inference_mode():
            logits = state.seam.base(z)
        return logits is None or state.head.agrees(z, logits.float(), allowed)
