"""The nouns of the loop: what crosses between a method, a policy and a reward model.

Everything here is small, frozen and on the CPU, so that it can cross a process boundary and be logged. Tensors live
in the engine and in the reward models only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: str  # system | user | assistant
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input row. A row that cannot be used still is a `Prompt`, with `error` saying why."""

    prompt_id: str  # "<dataset>/<split>/<ordinal:08d>", names this prompt's randomness
    ordinal: int  # position in the ordered input stream
    dataset: str
    text: str  # what a person reads; the `prompt` column
    messages: tuple[Message, ...] = ()  # the dialogue up to and including the last user turn
    meta: Mapping[str, Any] = field(default_factory=dict)  # JSON values: unit tests, reference answer, preferred reply
    max_tokens: int | None = None  # a longer prompt is an error row (data.max_prompt_tokens); None: the policy's limit
    error: str | None = None  # why this row cannot be used


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is picked from the (controlled) next-token distribution.

    temperature: 0 picks the most likely token, above 0 samples from softmax(logits / temperature).
    top_p: smallest set of tokens whose probability reaches it; 1 keeps all. top_k: 0 keeps all.
    support_top_p: below 1, only tokens of the smallest set that reaches this probability in the *uncontrolled*
    distribution (at temperature 1) can be picked; temperature, top_p and top_k then choose among these.
    branch_first: particle i takes the i-th most likely token at its first step (ARGS expands a prefix this way).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    branch_first: bool = False
    support_top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Control:
    """What is added to the pre-logits, z -> z + u, at generated positions below `horizon`. This base adds nothing."""

    horizon: int | None = 0  # None: all positions; the policy fills in its limit

    @property
    def reach(self) -> int:
        """`horizon` where the policy has filled it in, as in every request that an engine gets."""
        assert self.horizon is not None, "a policy fills in the horizon before its engine reads it"
        return self.horizon


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a method wants drawn next for one prompt: names, numbers and token ids, no tensor.

    Particle i of iteration k draws noise and tokens named (run seed, prompt id, k, i), wherever it runs.
    """

    iteration: int
    num_samples: int
    control: Control = Control()
    sampling: Sampling = Sampling()
    max_new_tokens: int | None = None  # None: the policy's limit. Counts a continued prefix too.
    prefixes: tuple[tuple[int, ...], ...] | None = None  # per particle: response tokens to continue from
    want: frozenset[str] = frozenset()  # of {"logprob", "token_kl", "prelogits"}

    def within(self, max_new_tokens: int) -> Proposal:
        """The same with a policy's limit where the horizon is None."""
        if self.control.horizon is not None:
            return self
        return replace(self, control=replace(self.control, horizon=max_new_tokens))


@dataclass(frozen=True, slots=True)
class Rollout:
    """One particle's response. A "live" position is a generated one (the end token's included) below the horizon."""

    particle: int
    text: str
    token_ids: tuple[int, ...]  # the whole response, a continued prefix and the end token included
    finish_reason: str  # stop | stop_string | length
    num_generated_tokens: int  # without a continued prefix
    control_inner: float = 0.0  # sum over live t of u_t . v_t
    control_square: float = 0.0  # sum over live t of |u_t|^2
    logprob: float = math.nan  # nats under the base policy, of the generated tokens; NaN if not asked for
    token_kl: float = math.nan  # nats, sum over generated t of KL(controlled | base) on this row's own prefix
    first_logit: float = math.nan  # base logit of the first generated token (ARGS)
    prelogits: Any = None  # float32 numpy [num_generated_tokens, d]: base pre-logits, when asked for

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The particles of one proposal, in particle order."""

    iteration: int
    items: tuple[Rollout, ...]
    num_prompt_tokens: int
    control_norm: float = 0.0  # |U|, Frobenius, over the horizon
    seconds: float = 0.0  # this request's share of the policy's busy time
    prefix_hit: bool = False  # the prompt's KV was there already

    @property
    def num_generated_tokens(self) -> int:
        return sum(item.num_generated_tokens for item in self.items)


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of a list of responses, in order. A response without a finite reward has NaN and an error text."""

    rewards: tuple[float, ...]
    errors: tuple[str | None, ...] = ()
    _: KW_ONLY
    seconds: float = 0.0
    num_truncated: int = 0  # responses whose prompt was cut to fit; they themselves never are
    traceback: str | None = None  # of the first exception that cost a response its reward, where it was raised


CONTROL, BRANCHES, PREFIXES, LOGPROB = "control", "branches", "prefixes", "logprob"
ASKS = {  # what a proposal may ask of a policy beyond plain sampling, in words
    CONTROL: "steering of pre-logits",
    BRANCHES: "the logits of a chosen first token",
    PREFIXES: "responses to continue",
    LOGPROB: "log-probabilities",
    "token_kl": "the full distribution of every token",
    "prelogits": "pre-logits",
}


def asked_by(proposal: Proposal) -> frozenset[str]:
    """The names of `ASKS` that a proposal needs."""
    found = set(proposal.want)
    if type(proposal.control) is not Control or proposal.control.horizon != 0:
        found.add(CONTROL)
    if proposal.sampling.branch_first:
        found.add(BRANCHES)
    if any(proposal.prefixes or ()):
        found.add(PREFIXES)
    return frozenset(found)


class Policy(Protocol):
    """A frozen language model that draws rollouts."""

    async def rollout(self, prompt: Prompt, proposal: Proposal, seed: int) -> Rollouts: ...


class Reward(Protocol):
    """A reward model that scores finished responses of one prompt."""

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> Scores: ...


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a model's actors live. Settings of policies, reward models and judges inherit these keys.

    Raises:
        ValueError: a number that no actor can have; names the key. A subclass with its own checks makes these too.
    """

    actors: tuple[int, int] = (1, 1)  # [min, max] replicas: a run starts at min and adopts more up to max
    num_gpus: float = 0.0  # GPUs of one actor; a fraction shares one GPU, above 1 spreads the model over several
    num_cpus: float = 0.5  # CPUs that Ray reserves for one actor without a GPU
    threads: int = 1  # torch threads of one actor on the CPU
    label_selector: dict[str, str] | None = None  # Ray node labels its nodes must carry, e.g. {aisp-role: policy}

    def __post_init__(self) -> None:
        low, high = self.actors
        if not 1 <= low <= high:
            raise ValueError(f"actors is {[low, high]}; it is [min, max], at least 1, and min at most max")
        if not 0 <= self.num_gpus < math.inf or (self.num_gpus > 1 and self.num_gpus != int(self.num_gpus)):
            raise ValueError(f"num_gpus is {self.num_gpus}; it is 0, a fraction of one GPU, or a whole number of them")
        if not 0 <= self.num_cpus < math.inf:
            raise ValueError(f"num_cpus is {self.num_cpus}; it must be at least 0")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; it must be at least 1")
