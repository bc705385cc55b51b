"""What reward models with weights share: settings, batching, bookkeeping. The kinds differ in how they are loaded."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisp_ray.errors import require_one_of
from aisp_ray.lm import gguf
from aisp_ray.lm.checkpoints import damage, dtype_for, loading
from aisp_ray.lm.text import require_fitting_tokenizer, unread
from aisp_ray.rewards._templates import CHAT, TEMPLATES, RewardRenderer, make_renderer
from aisp_ray.rewards._tokens import Encoded, TokenRow, encode, encode_pairs
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.types import Prompt, Scores

if TYPE_CHECKING:
    from aisp_ray.rewards._reader import Reader

DEMO = "demo:"  # prefix of the embedded models' names
DTYPES = ("auto", "float32", "bfloat16", "float16")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NeuralReward(RewardSpec):
    """Settings of a reward model with weights."""

    model: str  # hub id, folder, file.gguf, or an embedded one: demo:reward, demo:judge
    gguf_file: str | None = None  # the GGUF file to load, where model is a hub id or folder that holds several
    revision: str | None = None  # commit or tag on the hub; null takes the newest and pins it in the manifest
    dtype: str = "auto"  # of the body: auto (float32 on a CPU, bfloat16 on a GPU) | float32 | bfloat16 | float16
    template: str = CHAT  # chat (the tokenizer's own) | ultrarm_card | ultrarm_examples | ... (docs/rewards.md)
    max_tokens: int | None = None  # prompt and response; a longer prompt is cut; null: what the model can read
    batch_tokens: int = 16384  # tokens read in one forward pass at most, padding included
    shared_prefix: bool = True  # decoders read the prompt once and keep it; false: padded batches of whole texts
    prefix_mb: int | None = None  # memory for kept prompts, MiB; null: a third of a GPU's free memory, 2048 on a CPU
    read_on: bool | None = None  # responses that grow by a token (ARGS) are read on, not anew; null: if possible
    across_prompts: bool = False  # batch several prompts together: scores then depend, by rounding, on what else waits
    trust_remote_code: bool = False  # run Python code that the checkpoint brings along

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("template", self.template, (CHAT, *TEMPLATES))
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 2")
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is {self.batch_tokens}; it must be at least 1")
        if self.prefix_mb is not None and self.prefix_mb < 0:
            raise ValueError(f"prefix_mb is {self.prefix_mb}; give MiB, 0 keeps nothing")
        if self.read_on and (not self.shared_prefix or self.prefix_mb == 0):
            raise ValueError("read_on=true needs shared_prefix=true and a prefix_mb that is not 0: nothing is kept")

    @property
    def source(self) -> str:
        """The checkpoint folder or hub id."""
        if self.model.startswith(DEMO):
            return str(Path(__file__).parent.parent / "demo" / "models" / self.model.removeprefix(DEMO))
        return gguf.locate(self.model, self.gguf_file)[0]

    def check(self, where: str = "reward") -> list[str]:
        if problems := gguf.check(where, self.model, self.gguf_file):
            return problems
        path = Path(self.source)
        local = self.model.startswith((DEMO, "/", ".", "~")) or path.exists()
        probe = self._options.get("gguf_file", "config.json")
        if local and not (path / probe).is_file():
            missing = f"there is no {probe} in {path}; give a checkpoint folder or hub id"
            return [f"{where}.model={self.model}: {missing}"]
        if local and (problem := damage(path / probe if self._options else path)):
            return [f"{where}.model={self.model}: {problem}"]
        try:
            self._commit(where)
        except ValueError as error:
            return [str(error)]
        return []

    def pinned(self, where: str = "reward") -> NeuralReward:
        """These settings with the hub's newest commit written in: all actors and a resumed run load the same."""
        return replace(self, revision=self._commit(where) or self.revision)

    @property
    def _options(self) -> dict[str, str]:
        """What `from_pretrained` of a tokenizer or configuration needs for a GGUF file; empty for other checkpoints."""
        return gguf.locate(self.model, self.gguf_file)[1]

    def _commit(self, where: str) -> str | None:
        """The hub's commit; None for a checkpoint on the disk. Raises ValueError with one sentence."""
        from aisp_ray.lm.hub import look_up

        if Path(self.source).exists():
            return None
        probe = self._options.get("gguf_file", "config.json")
        return look_up(self.model, f"{where}.model", revision=self.revision, probe=probe)

    def load(self, device: str) -> NeuralScorer:
        from aisp_ray.rewards._reader import Reader

        with loading("model", self.model, self.source):
            tokenizer = self._tokenizer()
        renderer = make_renderer(self.template, tokenizer)  # refuses a template before the weights load
        with loading("model", self.model, self.source):
            model = gguf.as_dense(self._model(device))
        model.eval().requires_grad_(False)
        require_fitting_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0], f"model={self.model}")
        return NeuralScorer(self, tokenizer, renderer, Reader(model, *self._parts(model), self))

    @abstractmethod
    def _model(self, device: str) -> Any:
        """The checkpoint on its device."""

    @abstractmethod
    def _parts(self, model: Any) -> tuple[Any | None, Callable[[Any], Any]]:
        """(decoder body, float32 rewards [n] from its last hidden states [n, d]), or (None, rewards from logits) where
        only the model's own forward knows how to pool."""

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self.source, revision=self.revision, trust_remote_code=self.trust_remote_code, **self._options
        )

    def _loading(self, device: str) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`: where the weights go and in which type."""
        import torch

        straight = device != "cpu" and not self._options  # not through the host's memory first
        return {
            "revision": self.revision,
            "dtype": getattr(torch, dtype_for(self.dtype, device)),
            "device_map": "auto" if self.num_gpus > 1 else {"": device} if straight else None,
            **gguf.weights_options(self._options),
        }


@dataclass(slots=True)
class _Work:
    """A request on its way: its rows, and the place of each distinct row among them."""

    encoded: Encoded
    unique: dict[tuple[int, ...], int]
    rows: list[TokenRow]
    rewards: list[float]
    errors: list[str | None]


class NeuralScorer(Scorer):
    """`rewards.base.Scorer` of a model with weights."""

    def __init__(self, spec: NeuralReward, tokenizer: Any, renderer: RewardRenderer, reader: Reader):
        self.spec = spec
        self.tokenizer = tokenizer
        self.reader = reader
        self.renderer = renderer
        self.max_requests = None if spec.across_prompts else 1
        self.max_tokens = _limit(spec.max_tokens, reader.context, tokenizer)

    def describe(self, prompt: Prompt) -> str:
        try:
            encoded = self._encode(ScoreRequest(prompt, ("<response>",)))
        except ValueError as error:
            return f"(no text: {error})"
        row = encoded.rows[0]
        return f"({encoded.errors[0]})" if row is None else self.tokenizer.decode(list(row.ids))

    def stats(self) -> dict[str, float]:
        """Counters since the start: tokens read, kept prompts, batches halved for memory."""
        return self.reader.stats()

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        groups = [list(requests)] if self.spec.across_prompts else [[request] for request in requests]
        return [scores for group in groups for scores in self._score_group(group)]

    def _score_group(self, requests: list[ScoreRequest]) -> list[Scores]:
        started = time.perf_counter()
        works = [self._prepare(request) for request in requests]
        rewards, errors = self.reader.read([(work.encoded.head, work.rows) for work in works])
        for work, values, texts in zip(works, rewards, errors, strict=True):
            work.rewards.extend(values)
            work.errors.extend(texts)
        total = sum(len(row.ids) for work in works for row in work.rows) or 1
        seconds = time.perf_counter() - started
        return [
            _assemble(request, work, seconds * sum(len(row.ids) for row in work.rows) / total)
            for request, work in zip(requests, works, strict=True)
        ]

    def _prepare(self, request: ScoreRequest) -> _Work:
        """Tokens of a request, each distinct sequence once, in an order that depends on their content only."""
        try:
            encoded = self._encode(request)
        except ValueError as error:
            encoded = Encoded((), (None,) * len(request.responses), (str(error),) * len(request.responses))
        if not all(row is None or unread(row.ids, self.reader.num_embeddings) is None for row in encoded.rows):
            encoded = _without_unread(encoded, self.reader.num_embeddings)
        distinct = {row.ids: row for row in encoded.rows if row is not None}
        rows = sorted(distinct.values(), key=lambda row: (-len(row.ids), row.ids))
        return _Work(encoded, {row.ids: at for at, row in enumerate(rows)}, rows, [], [])

    def _encode(self, request: ScoreRequest) -> Encoded:
        encoder = encode_pairs if self.spec.template == "pair" else encode
        return encoder(self.tokenizer, self.renderer, request.prompt, request.responses, self.max_tokens)


def _without_unread(encoded: Encoded, num_embeddings: int) -> Encoded:
    """With an error text in place of the rows that hold a token without an embedding."""
    texts = [None if row is None else unread(row.ids, num_embeddings) for row in encoded.rows]
    rows = tuple(row if text is None else None for row, text in zip(encoded.rows, texts, strict=True))
    return replace(encoded, rows=rows, errors=tuple(a or b for a, b in zip(encoded.errors, texts, strict=True)))


def _assemble(request: ScoreRequest, work: _Work, seconds: float) -> Scores:
    """Rewards in the request's order. What is not a finite number is NaN with a text that names prompt and particle."""
    rewards: list[float] = []
    errors: list[str | None] = []
    for particle, (row, text) in enumerate(zip(work.encoded.rows, work.encoded.errors, strict=True)):
        reward = math.nan
        if row is not None:
            reward, text = work.rewards[work.unique[row.ids]], work.errors[work.unique[row.ids]]
            if text is None and not math.isfinite(reward):
                text = f"the reward model returned {reward}"
        if text is not None:
            reward, text = math.nan, f"prompt {request.prompt.prompt_id}, particle {particle}: {text}"
        rewards.append(reward)
        errors.append(text)
    truncated = sum(row is not None and row.truncated for row in work.encoded.rows)
    return Scores(tuple(rewards), tuple(errors), seconds=seconds, num_truncated=truncated)


def _limit(asked: int | None, context: int | None, tokenizer: Any) -> int:
    """Tokens that a row may have.

    Raises:
        ValueError: more is asked for than the model can read.
    """
    known = [n for n in (context, tokenizer.model_max_length) if n is not None and n < 1 << 30]
    most = min(known, default=1 << 30)
    if asked is not None and context is not None and asked > context:
        raise ValueError(f"max_tokens is {asked}, but this reward model reads at most {context} tokens")
    return most if asked is None else asked
