"""The seam: what stands in place of `compute_logits` in every vLLM worker.

vLLM hands it the last pre-logits of each request of a step, eagerly, outside its captured graphs, and on every rank of
a tensor-parallel group alike. It adds the controls, takes vLLM's own logits of the sums, chooses each row's token by
our named draws and hands back rows whose only non-zero entry is that token, of which vLLM's sampler takes the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from aisp_ray.engine.draws import BROKEN, branch, pick, supported
from aisp_ray.engine.vllm.steered import FIRST_LOGIT, LOGPROB, TOKEN_KL, Steered
from aisp_ray.types import Sampling

NAME = "aisp_ray"  # in `SamplingParams.extra_args`: (ticket, row)

Compute = Callable[[Tensor], Tensor | None]


class _Group:
    """The rows of one request in a step."""

    def __init__(self, steered: Steered):
        self.steered = steered
        self.at: list[int] = []  # where they stand in the batch
        self.rows: list[int] = []  # which rows of the request they are
        self.steps: list[int] = []  # the response position that each takes a token for

    def index(self, device: Any) -> Tensor:
        return torch.tensor(self.at, dtype=torch.int64, device=device)


class Seam:
    """`compute_logits` of one worker's model, steered."""

    def __init__(self, runner: Any):
        self.steered: dict[int, Steered] = {}
        self._runner = runner
        self._compute: Compute = runner.model.compute_logits
        self._onehot: Tensor | None = None
        self._last: Tensor | None = None  # tokens of the step before, to be wiped out
        runner.model.compute_logits = self

    def base(self, hidden: Tensor) -> Tensor | None:
        """vLLM's own logits."""
        return self._compute(hidden)

    def __call__(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor | None:
        groups = self._groups(len(hidden))
        if not groups:
            return self._compute(hidden)  # a trial run of vLLM's, or requests of its own
        tokens = self._steer(hidden, groups)
        return None if tokens is None else self._rows_of(tokens)

    def _groups(self, count: int) -> list[_Group]:
        names = self._runner.input_batch.req_ids
        if not self.steered or count != len(names):
            return []
        found: dict[int, _Group] = {}
        for at, name in enumerate(names):
            state = self._runner.requests[name]
            ours: Mapping[str, Any] = state.sampling_params.extra_args or {}
            if NAME not in ours:
                continue
            ticket, row = ours[NAME]
            group = found.setdefault(ticket, _Group(self.steered[ticket]))
            group.at.append(at)
            group.rows.append(row)
            group.steps.append(group.steered.given[row] + len(state.output_token_ids))
        assert not found or sum(len(group.at) for group in found.values()) == count, "requests of others in the batch"
        return list(found.values())

    def _steer(self, hidden: Tensor, groups: list[_Group]) -> Tensor | None:
        """Every row's token, int64 [rows]; None on a rank that gets no logits."""
        added = self._added(hidden, groups)
        moved = hidden if added is None else (hidden.float() + added).to(hidden.dtype)
        logits = self._compute(moved)  # [rows, V]
        base = self._base(hidden, logits, [g for g in groups if g.steered.reads_base], added is not None)
        if logits is None:
            return None
        logits = logits.float()
        tokens = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        for sampling, members in _by_sampling(groups).items():
            index = torch.cat([group.index(hidden.device) for group in members])
            allowed = _allowed(logits[index], members)
            if sampling.support_top_p < 1:
                mine = torch.cat([base[id(group)] for group in members])
                allowed = supported(allowed, mine, sampling.support_top_p)
            tokens[index] = _choose(allowed, sampling, members)
        for group in groups:
            index = group.index(hidden.device)
            steered = group.steered
            if steered.forced is not None:
                taken = [steered.forced[row][t] for row, t in zip(group.rows, group.steps, strict=True)]
                tokens[index] = torch.tensor(taken, device=hidden.device)
            steered.put_broken(group.rows, group.steps, tokens[index] == BROKEN)
            steered.keep(group.rows, group.steps, hidden[index])
            if steered.wants_base:
                _sum(group, logits[index], base[id(group)], tokens[index].clamp(min=0))
        if tokens.device.type == "cpu" and bool((tokens == BROKEN).any()):  # elsewhere this would wait for the device
            self.clean()
        return tokens.clamp(min=0)  # vLLM decodes on; the request ends as an exception

    def clean(self) -> None:
        """Take NaN out of vLLM's keys and values: the next owner of a block would read it through its masks."""
        for part in self._runner.kv_caches:
            torch.nan_to_num_(part, nan=0.0, posinf=0.0, neginf=0.0)

    def _added(self, hidden: Tensor, groups: list[_Group]) -> Tensor | None:
        parts = [(g, g.steered.control(g.rows, g.steps, hidden[g.index(hidden.device)])) for g in groups]
        if all(part is None for _, part in parts):
            return None
        added = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        for group, part in parts:
            if part is not None:
                added[group.index(hidden.device)] = part
        return added

    def _base(self, hidden: Tensor, logits: Tensor | None, asking: list[_Group], moved: bool) -> dict[int, Tensor]:
        """The uncontrolled logits of the groups that read them, float32."""
        if not asking:
            return {}
        index = torch.cat([group.index(hidden.device) for group in asking])
        found = self._compute(hidden[index]) if moved else logits[index] if logits is not None else None
        if found is None:
            return {}
        parts = found.float().split([len(group.at) for group in asking])
        return {id(group): part for group, part in zip(asking, parts, strict=True)}

    def _rows_of(self, tokens: Tensor) -> Tensor:
        """Rows [rows, V] that are 1 at the token and 0 elsewhere, in one buffer that only these entries change of."""
        count = len(tokens)
        if self._onehot is None or len(self._onehot) < count:
            self._onehot = torch.zeros(max(count, 16), self._runner.model_config.get_vocab_size(), device=tokens.device)
            self._last = None
        if self._last is not None:
            self._onehot[: len(self._last)].scatter_(1, self._last[:, None], 0.0)
        self._onehot[:count].scatter_(1, tokens[:, None], 1.0)
        self._last = tokens
        return self._onehot[:count]


def _by_sampling(groups: list[_Group]) -> dict[Sampling, list[_Group]]:
    found: dict[Sampling, list[_Group]] = {}
    for group in groups:
        found.setdefault(group.steered.request.proposal.sampling, []).append(group)
    return found


def _allowed(logits: Tensor, groups: list[_Group]) -> Tensor:
    """The logits [rows, V] of these groups' rows, with the end tokens forbidden where it is too early for them."""
    start = 0
    for group in groups:
        least, stops = group.steered.request.stop.min_new_tokens, group.steered.stop_ids
        early = [start + i for i, t in enumerate(group.steps) if t < least]
        if early and len(stops):
            rows = torch.tensor(early, device=logits.device)
            logits[rows[:, None], stops[None]] = -torch.inf
        start += len(group.at)
    return logits


def _choose(logits: Tensor, sampling: Sampling, groups: list[_Group]) -> Tensor:
    """A token a row by the rules and draws of all our engines, int64 [rows]."""
    draws = None
    if sampling.temperature > 0:
        draws = torch.cat([group.steered.uniforms(group.rows, group.steps) for group in groups])
    tokens = pick(logits, sampling, draws)
    if not sampling.branch_first:
        return tokens
    first, ranks = [], []
    for group in groups:
        first += [t == group.steered.given[row] for row, t in zip(group.rows, group.steps, strict=True)]
        ranks += [group.steered.particles[row] for row in group.rows]
    if not any(first):
        return tokens
    device = logits.device
    return torch.where(torch.tensor(first, device=device), branch(logits, torch.tensor(ranks, device=device)), tokens)


def _sum(group: _Group, logits: Tensor, base: Tensor, tokens: Tensor) -> None:
    """Log-probability, KL and the first base logit of a group's rows, from logits and base [rows, V]."""
    steered, want = group.steered, group.steered.request.proposal.want
    steered.put(group.rows, group.steps, FIRST_LOGIT, base.gather(1, tokens[:, None]).squeeze(1))
    if not want & {"logprob", "token_kl"}:
        return
    log_base = base.log_softmax(-1)
    steered.put(group.rows, group.steps, LOGPROB, log_base.gather(1, tokens[:, None]).squeeze(1))
    if "token_kl" in want:
        log_steered = logits.log_softmax(-1)
        steered.put(group.rows, group.steps, TOKEN_KL, (log_steered.exp() * (log_steered - log_base)).sum(-1))
