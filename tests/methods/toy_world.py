"""A language model of a few dozen parameters behind the real protocols, for checking methods by hand.

Pre-logit of a prefix: z = tanh(E[last token] + P[position]), d = 3; logits = W z + b over 5 tokens; token 0 ends.
Everything about it can be enumerated, differentiated and recomputed in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.draws import branch, pick
from aisp_ray.noise import normal, split_key, uniform
from aisp_ray.rng import prompt_key
from aisp_ray.types import Prompt, Proposal, Rollout, Rollouts, Scores

DIM, VOCABULARY, END = 3, 5, 0


def prompt(name: str = "toy/test/00000000") -> Prompt:
    return Prompt(name, 0, "toy", "a prompt")


class ToyPolicy:
    """`types.Policy` without the await, and `controls.MeanSource` of its one prompt."""

    def __init__(self, max_new_tokens: int = 4, seed: int = 0, ends: bool = True, scale: float = 1.0):
        g = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(VOCABULARY + 1, DIM, generator=g)
        self.position = torch.randn(max_new_tokens + 1, DIM, generator=g)
        self.weight = scale * torch.randn(VOCABULARY, DIM, generator=g)
        self.bias = torch.zeros(VOCABULARY) if ends else torch.tensor([-1e9, 0, 0, 0, 0])
        self.max_new_tokens = max_new_tokens
        self.dim, self.device = DIM, torch.device("cpu")
        self._key = prompt_key(0, prompt().prompt_id)

    def prelogit(self, tokens: Sequence[int]) -> Tensor:
        last = tokens[-1] if tokens else VOCABULARY
        return torch.tanh(self.embedding[last] + self.position[len(tokens)])  # [d]

    # what controls.MeanSource asks for
    def noise(self, iteration: int, particles: Sequence[int], horizon: int, start: int = 0) -> Tensor:
        eps = normal(*self._names(iteration, particles, horizon), DIM)  # [n * t, d]
        return eps.reshape(len(particles), horizon, DIM)[:, start:]

    def replay(self, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        return [torch.stack([self.prelogit(ids[:t]) for t in range(len(ids))]) for ids in token_ids]

    def head(self, prelogits: Tensor) -> Tensor:
        return prelogits @ self.weight.to(prelogits.dtype).T + self.bias.to(prelogits.dtype)

    def head_weight(self) -> Tensor:
        return self.weight

    # what types.Policy asks for
    def rollout(self, prompt: Prompt, proposal: Proposal, seed: int) -> Rollouts:
        self._key = prompt_key(seed, prompt.prompt_id)
        proposal = proposal.within(self.max_new_tokens)
        control, mean = proposal.control, None
        if isinstance(control, OpenLoop) and control.mean is not None:
            mean = control.mean.fold(self, control.reach)
        draws = uniform(*self._names(proposal.iteration, range(proposal.num_samples), self.max_new_tokens))
        draws = draws.reshape(proposal.num_samples, -1)  # [n, t]
        items = tuple(self._row(proposal, i, mean, draws[i]) for i in range(proposal.num_samples))
        norm = 0.0 if mean is None else float(mean.norm())
        return Rollouts(proposal.iteration, items, num_prompt_tokens=1, control_norm=norm)

    def _names(self, iteration: int, particles: Sequence[int], horizon: int) -> tuple[Tensor, ...]:
        """Of every position of each of the particles in turn."""
        count = len(particles) * horizon
        rows = torch.tensor(list(particles)).repeat_interleave(horizon)
        steps = torch.arange(horizon).repeat(len(particles))
        return split_key([self._key]).expand(count, 2), torch.full((count,), iteration), rows, steps

    def perturbations(self, proposal: Proposal, i: int, mean: Tensor | None) -> tuple[Tensor, Tensor]:
        """u and v of particle i at every position, [max_new_tokens, d] each."""
        control, T = proposal.control, self.max_new_tokens
        u, v = torch.zeros(T, DIM), torch.zeros(T, DIM)
        if not isinstance(control, OpenLoop):
            return u, v
        reach = min(control.reach, T)
        if mean is not None:
            u[:reach] = mean[:reach]
        v[:reach] = u[:reach] + control.sigma * self.noise(proposal.iteration, [i], reach)[0]
        return u, v

    def _row(self, proposal: Proposal, i: int, mean: Tensor | None, draws: Tensor) -> Rollout:
        prefix = proposal.prefixes[i] if proposal.prefixes else ()
        tokens, inner, square, logprob, first = list(prefix), 0.0, 0.0, 0.0, float("nan")
        limit = min(proposal.max_new_tokens or self.max_new_tokens, self.max_new_tokens)
        U, V = self.perturbations(proposal, i, mean)
        while len(tokens) < limit and not (tokens and tokens[-1] == END):
            t = len(tokens)
            u, v = U[t], V[t]
            z = self.prelogit(tokens)
            logits = self.head(z + v)[None]
            if proposal.sampling.branch_first and t == len(prefix):
                token = int(branch(logits, torch.tensor([i])))
            else:
                token = int(pick(logits, proposal.sampling, draws[t : t + 1]))
            base = self.head(z)
            first = float(base[token]) if t == len(prefix) else first
            logprob += float(base.log_softmax(-1)[token])
            inner, square = inner + float(u @ v), square + float(u @ u)
            tokens.append(token)
        return Rollout(
            particle=i,
            text=" ".join(map(str, tokens)),
            token_ids=tuple(tokens),
            finish_reason="stop" if tokens and tokens[-1] == END else "length",
            num_generated_tokens=len(tokens) - len(prefix),
            control_inner=inner,
            control_square=square,
            logprob=logprob,
            first_logit=first,
        )

    def responses(self) -> list[tuple[tuple[int, ...], float]]:
        """Every response and its probability under the base policy at temperature 1."""
        found = []
        for length in range(1, self.max_new_tokens + 1):
            for ids in itertools.product(range(VOCABULARY), repeat=length):
                if END in ids[:-1] or (length < self.max_new_tokens and ids[-1] != END):
                    continue
                rows = self.head(self.replay([ids])[0].double()).log_softmax(-1)
                found.append((ids, float(sum(rows[t, y] for t, y in enumerate(ids)).exp())))
        return found


def tokens_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())


RewardFn = Callable[[tuple[int, ...]], float]


def scores_of(rollouts: Rollouts, reward: RewardFn) -> Scores:
    return Scores(tuple(float(reward(item.token_ids)) for item in rollouts.items))


def drive(method, policy: ToyPolicy, reward: RewardFn, seed: int = 0):
    """The loop, in one thread. Returns the last state and a list of (proposal, rollouts, scores, info)."""
    state, history = method.init(prompt(), seed), []
    while not state.done:
        proposal = method.ask(state)
        rollouts = policy.rollout(prompt(), proposal, seed)
        scores = scores_of(rollouts, reward)
        state, info = method.tell(state, rollouts, scores)
        history.append((proposal, rollouts, scores, info))
    return state, history
