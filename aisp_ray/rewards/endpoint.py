"""A reward model that vLLM serves, by its classification or pooling API: `vllm serve <model> --runner pooling`.

The server's own chat template writes the text (template=chat, a request per response), or one of our fixed reward
templates does (then `batch` texts go in one request). The score is the raw output of the model's head: vLLM would
else put a sigmoid or softmax on it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aisp_ray.errors import is_away
from aisp_ray.lm.endpoint import Endpoint, ServedModel
from aisp_ray.rewards._templates import CHAT, TEMPLATES, NamedRenderer, turns
from aisp_ray.rewards.base import RewardSpec, Scorer, ScoreRequest
from aisp_ray.types import Prompt, Scores

APIS = ("classify", "pooling")
_LABEL = re.compile(r"label:(\d+)")
_Value = float | str  # a reward, or why there is none


@dataclass(frozen=True, kw_only=True)
class EndpointReward(ServedModel, RewardSpec):
    """Settings of a reward model behind an endpoint."""

    api: str = "classify"  # classify | pooling: which of vLLM's two interfaces
    template: str = CHAT  # chat: the server's chat template | ultrarm_card | eurus | transcript | plain | ...
    reduction: str | None = None  # several outputs only: label:K, the one that is the reward, counted from 0
    activation: bool = False  # true: the sigmoid or softmax that the server puts on its outputs
    batch: int = 32  # texts of one request; template=chat sends one each
    concurrency: int = 16  # requests at the endpoint at a time

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_served()
        if self.api not in APIS:
            raise ValueError(f"api is {self.api!r}; it is one of {', '.join(APIS)}")
        fitting = [CHAT, *(name for name, form in TEMPLATES.items() if not form.eos and name != "pair")]
        if self.template not in fitting:
            raise ValueError(f"template is {self.template!r}; of an endpoint it is one of {', '.join(fitting)}")
        if self.reduction is not None and not _LABEL.fullmatch(self.reduction):
            raise ValueError(f"reduction is {self.reduction!r}; of an endpoint it is label:K, K counted from 0")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; give at least 1 text per request")

    def check(self, where: str = "reward") -> list[str]:
        if self.base_url is None:
            return [f"{where}.base_url must be set: the address of a vLLM server, such as http://localhost:8000/v1"]
        return self.unreachable("a served reward model", where)

    def load(self, device: str) -> EndpointScorer:
        endpoint = Endpoint(self, "reward")
        endpoint.require_model("reward")
        return EndpointScorer(self, endpoint)


class EndpointScorer(Scorer):
    """`rewards.base.Scorer` over HTTP. Needs no device."""

    def __init__(self, spec: EndpointReward, endpoint: Endpoint):
        self.spec, self.endpoint = spec, endpoint
        self.renderer = None if spec.template == CHAT else NamedRenderer(TEMPLATES[spec.template])
        # these two interfaces stand at the server's root, beside /v1
        self.url = f"{str(spec.base_url).rstrip('/').removesuffix('/v1')}/{spec.api}"

    def describe(self, prompt: Prompt) -> str:
        if self.renderer is not None:
            return self.renderer.render(prompt, ["<response>"])[1][0]
        return "\n\n".join(f"{t['role']}: {t['content']}" for t in _dialogue(prompt, "<response>"))

    def stats(self) -> dict[str, float]:
        return self.endpoint.counts(("calls", "failed_calls", "prompt_tokens"))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        started = time.perf_counter()
        cases = [(request.prompt, text) for request in requests for text in dict.fromkeys(request.responses)]
        found = self._chats(cases) if self.renderer is None else self._texts(cases)
        values = {(id(prompt), text): value for (prompt, text), value in zip(cases, found, strict=True)}
        seconds = (time.perf_counter() - started) / max(1, len(requests))
        return [self._scores(request, values, seconds) for request in requests]

    def _chats(self, cases: Sequence[tuple[Prompt, str]]) -> list[_Value]:
        """A request each."""
        dialogues = [_dialogue(prompt, text) for prompt, text in cases]
        asks: dict[Hashable, Callable[[], list[_Value]]] = {
            repr(turns): partial(self._ask, {"messages": turns, "add_generation_prompt": False}, 1)
            for turns in dialogues
        }
        answers = self.endpoint.start(asks).answers()
        return [answers[repr(turns)][0] for turns in dialogues]

    def _texts(self, cases: Sequence[tuple[Prompt, str]]) -> list[_Value]:
        """Requests of up to `batch` texts."""
        assert self.renderer is not None
        texts: list[str | None] = []
        values: dict[str | None, _Value] = {}
        for at, (prompt, response) in enumerate(cases):
            try:
                texts.append(self.renderer.render(prompt, [response])[1][0])
            except ValueError as error:  # this dialogue does not fit the template
                texts.append(None)
                values[f"{at}"] = str(error)
        different = list(dict.fromkeys(text for text in texts if text is not None))
        parts = [tuple(different[i : i + self.spec.batch]) for i in range(0, len(different), self.spec.batch)]
        asks: dict[Hashable, Callable[[], list[_Value]]] = {part: partial(self._ask_texts, part) for part in parts}
        answers = self.endpoint.start(asks).answers()
        read = {text: value for part in parts for text, value in zip(part, answers[part], strict=True)}
        return [values[f"{at}"] if text is None else read[text] for at, text in enumerate(texts)]

    def _ask_texts(self, texts: Sequence[str]) -> list[_Value]:
        """Where the server refuses a batch, each text alone: only the one at fault has no reward."""
        assert self.renderer is not None
        body = {"add_special_tokens": self.renderer.adds_bos}
        found = self._ask({**body, "input": list(texts)}, len(texts))
        if len(texts) > 1 and all(isinstance(value, str) for value in found):
            return [self._ask({**body, "input": [text]}, 1)[0] for text in texts]
        return found

    def _ask(self, body: dict[str, Any], count: int) -> list[_Value]:
        """One value per text. Raises where the endpoint is away."""
        body = {"model": self.spec.model, "use_activation": self.spec.activation, **body, **self.spec.extra}
        if self.spec.api == "pooling":
            body.setdefault("task", "classify")
        try:
            reply = self.endpoint.client.post(self.url, body=body, cast_to=dict[str, Any])
            self.endpoint.count(calls=1, prompt_tokens=(reply.get("usage") or {}).get("prompt_tokens") or 0)
            items = sorted(reply["data"], key=lambda item: item["index"])
            if len(items) != count:
                raise ValueError(f"{len(items)} scores came back for {count} texts")
            return [self._value(item["probs" if self.spec.api == "classify" else "data"]) for item in items]
        except Exception as error:  # a text that the server refuses is one reward that is unknown
            self.endpoint.count(failed_calls=1)
            if is_away(error):
                raise
            text = f"the endpoint gave no reward: {type(error).__name__}: {error}"
            return [self.endpoint.redacted(text)] * count

    def _value(self, outputs: Sequence[Any]) -> float:
        """The reward among the outputs of a text.

        Raises:
            ValueError: it cannot be told which of them it is.
        """
        if any(not isinstance(value, int | float) for value in outputs):
            raise ValueError("the server gives outputs per token; serve the model as a classifier, or use api=classify")
        if self.spec.reduction is None:
            if len(outputs) != 1:
                raise ValueError(f"the model has {len(outputs)} outputs; say which is the reward: reduction=label:K")
            return float(outputs[0])
        label = int(self.spec.reduction.partition(":")[2])
        if label >= len(outputs):
            raise ValueError(f"reduction={self.spec.reduction}, and the model has outputs 0 to {len(outputs) - 1}")
        return float(outputs[label])

    def _scores(self, request: ScoreRequest, values: dict[tuple[int, str], _Value], seconds: float) -> Scores:
        found = [values[id(request.prompt), text] for text in request.responses]
        errors = [value if isinstance(value, str) else None for value in found]
        rewards = [math.nan if isinstance(value, str) else value for value in found]
        for i, reward in enumerate(rewards):
            if errors[i] is None and not math.isfinite(reward):
                errors[i] = f"the endpoint's reward is {reward}"
        return Scores(tuple(rewards), tuple(errors), seconds=seconds)


def _dialogue(prompt: Prompt, response: str) -> list[dict[str, str]]:
    asked = [{"role": turn.role, "content": turn.content} for turn in turns(prompt)]
    return [*asked, {"role": "assistant", "content": response}]
