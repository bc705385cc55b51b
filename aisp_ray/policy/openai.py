"""A language model behind an OpenAI-compatible endpoint as a policy: vLLM, SGLang, llama.cpp, a provider.

An endpoint shows no pre-logits, so methods that steer them are refused. What is left is sampling, and continuing a
response: as the chat's last turn, which the server must leave open (`continue_final_message`, of vLLM and SGLang), or,
with a fixed text, as more of the prompt, which any completions endpoint can do.

Methods name prefixes by token ids, and an endpoint may give none. A token's id is therefore the bytes of its text,
read as a number: any actor can turn a prefix back into text, and its length still counts tokens. The server reads that
text anew, so its own tokens of a continued response may differ from those that it first drew.

Every response is a request of its own, with a seed named by run, prompt, iteration and particle. Whether the server
draws the same tokens for the same seed is up to the server; rows that depend on an endpoint need not repeat.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aisp_ray.errors import DataError, is_away
from aisp_ray.lm.endpoint import Asked, Endpoint, ServedModel
from aisp_ray.policy.base import PolicySpec
from aisp_ray.policy.templates import CHAT, Template, find_template, turns_of
from aisp_ray.rng import derive_seed, prompt_key
from aisp_ray.types import LOGPROB, PREFIXES, Prompt, Proposal, Rollout, Rollouts, Sampling, asked_by

_LOOK_SECONDS = 0.01  # how long a step waits for a reply before new requests are let in
_OPEN = {"add_generation_prompt": False, "continue_final_message": True}  # the last turn goes on
_DATA = (400, 413, 422)  # HTTP: the request itself is at fault


@dataclass(frozen=True, kw_only=True)
class OpenAIPolicy(ServedModel, PolicySpec):
    """Settings of a policy behind an endpoint."""

    template: str = CHAT  # chat: the server's own | re_control_user | transcript | vicuna | plain | ...: a fixed text
    system: str | None = None  # system turn for prompts that have none
    max_new_tokens: int = 128  # response tokens at most
    stop_strings: tuple[str, ...] | None = None  # a response ends where one of these starts; null: the template's
    logprobs: bool | None = None  # ask for each token's text and log-probability; null: where the endpoint takes that
    concurrency: int = 64  # requests at the endpoint at a time

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_served()
        if self.template.endswith(".jinja"):
            raise ValueError(
                f"template is {self.template}; an endpoint has its own chat template: chat, or a fixed text"
            )
        find_template(self.template)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.stop_strings and not all(self.stop_strings):
            raise ValueError("stop_strings holds an empty text, which would end every response before it begins")

    @property
    def slots(self) -> int:
        return self.concurrency

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({PREFIXES}) if self.logprobs is False else frozenset({PREFIXES, LOGPROB})

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings in force."""
        template = find_template(self.template)
        return (template.stop_strings if template else ()) if self.stop_strings is None else self.stop_strings

    def check(self) -> list[str]:
        return self.unreachable("policy=openai", "policy")

    def announcement(self) -> str:
        return f"policy: {self.model} at {self.base_url or 'api.openai.com'}, {self.concurrency} requests at a time"

    def load(self, device: str) -> LoadedOpenAIPolicy:
        endpoint = Endpoint(self, "policy")
        endpoint.require_model("policy")
        return LoadedOpenAIPolicy(self, OpenAIEngine(self, endpoint))


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """One proposal for one prompt."""

    prompt: Prompt
    proposal: Proposal
    key: int  # names the seeds
    max_new_tokens: int


class LoadedOpenAIPolicy:
    """`policy.base.LoadedPolicy` of an endpoint."""

    def __init__(self, spec: OpenAIPolicy, engine: OpenAIEngine):
        self.spec, self.engine = spec, engine

    def request(self, prompt: Prompt, proposal: Proposal, seed: int) -> OpenAIRequest:
        if not prompt.text.strip() and not prompt.messages:
            raise DataError("the prompt is empty")
        most = min(proposal.max_new_tokens or self.spec.max_new_tokens, self.spec.max_new_tokens)
        return OpenAIRequest(prompt, proposal, prompt_key(seed, prompt.prompt_id), most)

    def finish(self, rollouts: Rollouts) -> Rollouts:
        return rollouts

    def describe(self, prompt: Prompt) -> str:
        template = find_template(self.spec.template)
        if template is not None:
            return template.write(prompt)
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns_of(prompt, self.spec.system))


class OpenAIEngine:
    """Steps like an engine; the work is done elsewhere."""

    def __init__(self, spec: OpenAIPolicy, endpoint: Endpoint):
        self.spec, self.endpoint = spec, endpoint
        self.template = find_template(spec.template)
        self.logprobs = spec.logprobs is not False
        self._tickets = itertools.count()
        self._running: dict[int, tuple[OpenAIRequest, Asked]] = {}

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"engine": "openai", "base_url": self.spec.base_url, "model": self.spec.model}

    @property
    def num_pending(self) -> int:
        return len(self._running)

    def stats(self) -> dict[str, float]:
        return self.endpoint.counts(("calls", "failed_calls", "prompt_tokens", "completion_tokens"))

    def submit(self, request: OpenAIRequest) -> int:
        """Send one request per particle.

        Raises:
            ValueError: the proposal asks for what an endpoint cannot give.
        """
        proposal = request.proposal
        if wrong := asked_by(proposal) - self.spec.gives:
            raise ValueError(f"the proposal asks for {', '.join(sorted(wrong))}, which an endpoint does not give")
        prefixes = proposal.prefixes or ((),) * proposal.num_samples
        asks: dict[Hashable, Callable[[], Any]] = {
            (request.key, proposal, particle): partial(self._draw, request, particle, prefix)
            for particle, prefix in enumerate(prefixes)
        }
        ticket = next(self._tickets)
        self._running[ticket] = (request, self.endpoint.start(asks))
        return ticket

    def step(self) -> list[tuple[int, Rollouts | Exception]]:
        """Whatever has come back."""
        ended = [ticket for ticket, (_, batch) in self._running.items() if batch.settled]
        if not ended:
            time.sleep(_LOOK_SECONDS)
        return [(ticket, self._collect(*self._running.pop(ticket))) for ticket in ended]

    def _collect(self, request: OpenAIRequest, batch: Asked) -> Rollouts | Exception:
        try:
            drawn = batch.answers()
        except Exception as error:
            return error
        items, tokens, seconds = zip(*drawn.values(), strict=True)
        ordered = tuple(sorted(items, key=lambda item: item.particle))
        return Rollouts(request.proposal.iteration, ordered, max(tokens), seconds=sum(seconds) / self.spec.concurrency)

    def _draw(self, request: OpenAIRequest, particle: int, prefix: tuple[int, ...]) -> tuple[Rollout, int, float]:
        """(the response, the prompt's tokens as far as known, seconds).

        Raises:
            DataError: the endpoint refuses this prompt.
            Exception: the endpoint is away.
        """
        started = time.perf_counter()
        before = text_of(prefix)
        try:
            reply = self._send(request, particle, before, request.max_new_tokens - len(prefix))
        except Exception as error:
            self.endpoint.count(failed_calls=1)
            if is_away(error) or getattr(error, "status_code", None) not in _DATA:
                raise
            raise DataError(self.endpoint.redacted(f"the endpoint refuses the prompt: {error}")) from error
        usage = reply.usage
        prompt_tokens = usage.prompt_tokens if usage else 0
        self.endpoint.count(
            calls=1, prompt_tokens=prompt_tokens, completion_tokens=usage.completion_tokens if usage else 0
        )
        drawn = self._read(reply, particle, (before, prefix), LOGPROB in request.proposal.want)
        return drawn, max(0, prompt_tokens - len(prefix)), time.perf_counter() - started

    def _send(self, request: OpenAIRequest, particle: int, before: str, room: int) -> Any:
        sampling, proposal = request.proposal.sampling, request.proposal
        seed = derive_seed(request.key, "endpoint", proposal.iteration, particle) >> 33  # 31 bits fit everywhere
        body = {"model": self.spec.model, "max_tokens": room, "seed": seed, **sampled(sampling)}
        body |= {"stop": list(self.spec.stops)} if self.spec.stops else {}
        extra = {**self.spec.extra, **({"top_k": sampling.top_k} if sampling.top_k else {})}
        client = self.endpoint.client
        if self.template is not None:
            ask = partial(client.completions.create, prompt=self._text(request.prompt, self.template) + before)
            wanted: dict[str, Any] = {"logprobs": 0}
        else:
            turns = [{"role": t.role, "content": t.content} for t in turns_of(request.prompt, self.spec.system)]
            if before:
                turns, extra = [*turns, {"role": "assistant", "content": before}], {**extra, **_OPEN}
            ask, wanted = partial(client.chat.completions.create, messages=turns), {"logprobs": True}
        if not self.logprobs:
            return ask(**body, extra_body=extra or None)
        try:
            return ask(**body, **wanted, extra_body=extra or None)
        except Exception as error:
            refused = getattr(error, "status_code", None) in _DATA and "logprob" in str(error)
            if not refused or self.spec.logprobs is not None:
                raise
            self.logprobs = False  # from here on without
            return ask(**body, extra_body=extra or None)

    def _text(self, prompt: Prompt, template: Template) -> str:
        turns = turns_of(prompt, self.spec.system)
        return template.write(prompt if turns == prompt.messages else replace(prompt, messages=turns))

    def _read(self, reply: Any, particle: int, begun: tuple[str, tuple[int, ...]], want_logprob: bool) -> Rollout:
        """The response of a reply. begun: text and ids of what was continued."""
        choice = reply.choices[0] if reply.choices else None
        said = None if choice is None else choice.text if self.template is not None else choice.message.content
        tokens, logprobs = _token_texts(choice)
        count = len(tokens) or (reply.usage.completion_tokens if reply.usage else 0)
        if choice is None or said is None or (count == 0 and said):
            raise DataError(
                f"the endpoint's reply holds no response that can be read (finish_reason "
                f"{getattr(choice, 'finish_reason', None)}); a model that thinks first needs more "
                "policy.max_new_tokens, or policy.extra={chat_template_kwargs: {enable_thinking: false}}"
            )
        if want_logprob and not logprobs:
            raise DataError("the endpoint gives no log-probabilities, which the method's select=regularised needs")
        before, prefix = begun
        text = before + said
        strip = self.template is not None and self.template.strip
        return Rollout(
            particle,
            text.strip() if strip else text,
            (*prefix, *(_id_of(part) for part in split_like(said, tokens, count))),
            _finish(choice),
            count,
            logprob=math.fsum(logprobs) if logprobs else math.nan,
        )


def sampled(sampling: Sampling) -> dict[str, float]:
    """The fields of a request that say how tokens are picked."""
    return {"temperature": sampling.temperature, **({"top_p": sampling.top_p} if sampling.top_p < 1 else {})}


def _finish(choice: Any) -> str:
    if choice.finish_reason == "length":
        return "length"
    return "stop_string" if isinstance(getattr(choice, "stop_reason", None), str) else "stop"


def _token_texts(choice: Any) -> tuple[list[bytes], list[float]]:
    """Bytes and log-probability of each generated token; empty where the endpoint gives none."""
    listed = getattr(choice, "logprobs", None)
    if listed is None:
        return [], []
    if (content := getattr(listed, "content", None)) is not None:  # of a chat
        texts = [bytes(one.bytes) if one.bytes is not None else one.token.encode() for one in content]
        return texts, [one.logprob for one in content]
    tokens, values = getattr(listed, "tokens", None) or [], getattr(listed, "token_logprobs", None) or []
    return [token.encode() for token in tokens], [value for value in values if value is not None]


def split_like(text: str, tokens: Sequence[bytes], count: int) -> list[bytes]:
    """The text as one piece per token.

    Where the tokens' own texts are not known, or do not spell the text (a letter of several tokens, say), the pieces
    are of about equal length. A token that ended the response has an empty piece.
    """
    whole = text.encode()
    if b"".join(tokens).startswith(whole) and tokens:
        pieces, left = [], whole
        for token in tokens:
            pieces.append(left[: len(token)])
            left = left[len(token) :]
        return pieces
    cuts = [round(i * len(text) / count) for i in range(count + 1)] if count else []
    return [text[a:b].encode() for a, b in itertools.pairwise(cuts)]


def _id_of(piece: bytes) -> int:
    return int.from_bytes(b"\x01" + piece)


def text_of(ids: Sequence[int]) -> str:
    """The text of token ids of an endpoint's response; half a letter at its end is left out."""
    pieces = (number.to_bytes((number.bit_length() + 7) // 8)[1:] for number in ids)
    return b"".join(pieces).decode(errors="ignore")
