"""The vLLM engine: `engine.base.Engine` on vLLM's `add_request` and `step`.

A particle is a vLLM request that names its row; its proposal goes to the workers once, as names and numbers. The
workers add the control, choose the tokens and keep the sums (`seam.py`); vLLM schedules, shares the blocks of equal
prompts and runs the model's body.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aisp_ray.engine.base import Decode, RolloutRequest, StopRules, broken_logits
from aisp_ray.engine.vllm.seam import NAME
from aisp_ray.engine.vllm.setup import VllmSettings, installed_version, make_engine
from aisp_ray.engine.vllm.steered import FIRST_LOGIT, INNER, LOGPROB, SQUARE, TOKEN_KL
from aisp_ray.types import Proposal, Rollout, Rollouts

STRING_CHECK = 4  # tokens between two searches of a row's text for stop strings


@dataclass(slots=True)
class _Row:
    """One particle: what the driver knows of it."""

    particle: int
    given: tuple[int, ...]  # the response tokens that it continues
    length: int  # tokens of the whole response at most
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    checked: int = 0  # tokens whose text was searched for stop strings

    def take(self, new: Sequence[int], ended: bool, request: RolloutRequest, decode: Decode | None) -> None:
        """Append tokens, and set `finish` if that ends the row. ended: vLLM decodes no more of it."""
        self.tokens += new
        count = len(self.tokens)
        stopped = self.tokens[-1] in request.stop.token_ids
        if decode is not None and request.stop.strings and (ended or count - self.checked >= STRING_CHECK):
            cut = self._string_end(request.stop, decode)
            if cut is not None and not (stopped and cut == count):
                del self.tokens[cut:]
                self.finish = "stop_string"
                return
            self.checked = count
        if ended:
            self.finish = "stop" if stopped else "length"

    def _string_end(self, stop: StopRules, decode: Decode) -> int | None:
        """The smallest number of tokens, not searched before, whose text has a stop string."""

        def found(count: int) -> bool:
            tokens = self.tokens[:count]
            return stop.string_start(decode(tokens), tokens, decode) is not None

        if not found(len(self.tokens)):
            return None
        start = max(self.checked, len(self.given), stop.min_new_tokens - 1) + 1
        return next((count for count in range(start, len(self.tokens) + 1) if found(count)), None)


@dataclass(slots=True)
class _Flight:
    """A request in vLLM's queues."""

    ticket: int
    request: RolloutRequest
    rows: list[_Row]
    control_norm: float = 0.0
    left: int = 0  # rows that have not ended
    seconds: float = 0.0
    hit: bool = False
    waiting: int | None = None  # the ticket of the request that this one is a replay for


class VllmEngine:
    """Steps a vLLM engine. decode: token ids to text, which only stop strings need."""

    def __init__(self, settings: VllmSettings, decode: Callable[[Sequence[int]], str] | None = None):
        import torch

        self.settings = settings
        self.longest_prompt: int | None = None
        self.llm = make_engine(settings)
        self._decode = decode
        self._flights: dict[int, _Flight] = {}
        self._parked: dict[int, RolloutRequest] = {}  # their means wait for a replay
        self._next_ticket = 0
        self._count = {"row_steps": 0, "prompt_tokens": 0, "cached_tokens": 0, "prefix_hits": 0, "prefix_misses": 0}
        self.call("aisp_install")
        self.fingerprint: dict[str, Any] = {
            "engine": "vllm",
            "vllm": installed_version(),
            "dtype": str(self.llm.model_config.dtype),
            "noise_scale": round(self.call("aisp_noise_scale"), 4),
            "torch": torch.__version__,
            "tensor_parallel": settings.tensor_parallel,
            "batch_invariant": _batch_invariant(),
        }

    @property
    def num_pending(self) -> int:
        return sum(flight.waiting is None for flight in self._flights.values()) + len(self._parked)

    def submit(self, request: RolloutRequest) -> int:
        request.check(self._decode)
        room = self.settings.context - len(request.prompt_ids)
        if request.max_new_tokens > room:
            raise ValueError(
                f"{len(request.prompt_ids)} prompt tokens and max_new_tokens={request.max_new_tokens} do not fit "
                f"into the engine's context of {self.settings.context} tokens"
            )
        self._next_ticket += 1
        ticket = self._next_ticket  # a replay takes the next one
        self._start(ticket, request)
        return ticket

    def step(self) -> list[tuple[int, Rollouts | Exception]]:
        if not self._flights:
            return []
        started = time.perf_counter()
        running = list(self._flights.values())
        outputs = self.llm.step()
        ended = [flight for output in outputs if (flight := self._take(output)) is not None]
        share = (time.perf_counter() - started) / max(sum(flight.left for flight in running), 1)
        for flight in running:
            flight.seconds += share * flight.left
        return [result for flight in ended if (result := self._finish(flight)) is not None]

    def stats(self) -> dict[str, float]:
        """`cached_tokens` of `prompt_tokens` were found in vLLM's blocks: their quotient is `prefix_hit_rate`."""
        count = self._count
        rate = count["cached_tokens"] / count["prompt_tokens"] if count["prompt_tokens"] else math.nan
        return {
            **{name: float(value) for name, value in count.items()},
            "useful_row_steps": float(count["row_steps"]),
            "prefix_hit_rate": rate,
        }

    def call(self, method: str, *args: Any) -> Any:
        """A method of the workers' extension on every rank; the first rank's result."""
        return self.llm.collective_rpc(method, args=args)[0]

    def close(self) -> None:
        """End the worker processes."""
        self.llm.engine_core.shutdown()

    @property
    def config(self) -> Any:
        """The text model's configuration, as vLLM reads it."""
        return self.llm.model_config.hf_text_config

    def own_greedy(self, prompt_ids: Sequence[int], count: int) -> tuple[int, ...]:
        """Greedy tokens by vLLM alone, past the seam; nothing else may be under way."""
        from vllm import SamplingParams

        assert not self._flights
        parameters = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        self.llm.add_request("own", {"prompt_token_ids": list(prompt_ids)}, parameters)
        while True:
            for output in self.llm.step():
                if output.finished:
                    return tuple(output.outputs[0].token_ids)

    # ------------------------------------------------------------ a request's way

    def _start(self, ticket: int, request: RolloutRequest) -> None:
        norm, missing = pickle.loads(self.call("aisp_begin", ticket, pickle.dumps((request, None))))
        if missing is not None:
            self._replay(ticket, request, missing)
            return
        proposal = request.proposal
        who = request.particles if request.particles is not None else range(proposal.num_samples)
        prefixes = proposal.prefixes or ((),) * proposal.num_samples
        rows = [_Row(i, tuple(prefixes[i]), request.max_new_tokens, list(prefixes[i])) for i in who]
        self._flights[ticket] = _Flight(ticket, request, rows, norm)
        self._add_rows(self._flights[ticket])

    def _replay(self, ticket: int, request: RolloutRequest, responses: Sequence[tuple[int, ...]]) -> None:
        """Decode given responses once more, unsteered: the request's mean is made from their pre-logits."""
        longest = max(len(ids) for ids in responses)
        proposal = Proposal(0, len(responses), want=frozenset({"prelogits"}))
        again = RolloutRequest(request.prompt_ids, 0, proposal, longest, StopRules())
        self._next_ticket += 1
        mine = self._next_ticket
        self.call("aisp_begin", mine, pickle.dumps((again, responses)))
        self._parked[ticket] = request
        rows = [_Row(i, (), len(ids)) for i, ids in enumerate(responses)]
        self._flights[mine] = _Flight(mine, again, rows, waiting=ticket)
        self._add_rows(self._flights[mine])

    def _add_rows(self, flight: _Flight) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        request = flight.request
        kind = RequestOutputKind.DELTA if request.stop.strings else RequestOutputKind.FINAL_ONLY
        for index, row in enumerate(flight.rows):
            parameters = SamplingParams(
                temperature=0.0,  # the seam hands over the chosen token as the most likely one
                max_tokens=row.length - len(row.given),
                stop_token_ids=list(request.stop.token_ids),
                ignore_eos=True,
                detokenize=False,
                output_kind=kind,
                extra_args={NAME: [flight.ticket, index]},
            )
            prompt = {"prompt_token_ids": [*request.prompt_ids, *row.given]}
            self.llm.add_request(f"{flight.ticket}-{index}", prompt, parameters)
        flight.left = len(flight.rows)

    def _take(self, output: Any) -> _Flight | None:
        """A row's new tokens. Returns its request if that was the last row to end."""
        ticket, index = map(int, output.request_id.split("-"))
        flight = self._flights[ticket]
        row = flight.rows[index]
        new = output.outputs[0].token_ids
        row.take(list(new), output.finished, flight.request, self._decode)
        if output.finished and output.num_cached_tokens is not None:
            self._count_prefix(flight, index, output.num_cached_tokens)
        self._count["row_steps"] += len(new)
        if row.finish is None:
            return None
        if not output.finished:
            self.llm.abort_request([output.request_id])
        flight.left -= 1
        return None if flight.left else flight

    def _count_prefix(self, flight: _Flight, index: int, cached: int) -> None:
        count = self._count
        count["prompt_tokens"] += len(flight.request.prompt_ids) + len(flight.rows[index].given)
        count["cached_tokens"] += cached
        count["prefix_hits" if cached else "prefix_misses"] += 1
        if index == 0:
            flight.hit = cached > 0

    def _finish(self, flight: _Flight) -> tuple[int, Rollouts | Exception] | None:
        del self._flights[flight.ticket]
        ended = self.call("aisp_end", flight.ticket, flight.waiting is not None)
        terms, prelogits, broken = pickle.loads(ended)
        if flight.waiting is not None:
            request = self._parked.pop(flight.waiting)
            try:
                self._start(flight.waiting, request)
            except Exception as error:
                return flight.waiting, error
            return None
        for row, step in zip(flight.rows, broken, strict=True):
            if step < len(row.tokens):
                return flight.ticket, broken_logits(str(self.llm.model_config.dtype), row.particle, step)
        items = tuple(
            _result(
                row,
                flight.request,
                terms[i] if terms is not None else None,
                prelogits[i] if prelogits is not None else None,
            )
            for i, row in enumerate(flight.rows)
        )
        request = flight.request
        done = Rollouts(
            request.proposal.iteration,
            items,
            len(request.prompt_ids),
            flight.control_norm,
            flight.seconds,
            prefix_hit=flight.hit,
        )
        return flight.ticket, done


def _result(row: _Row, request: RolloutRequest, terms: np.ndarray | None, prelogits: np.ndarray | None) -> Rollout:
    """terms: float64 [T, 5]; prelogits: float32 [T, d]. Only generated positions count."""
    proposal = request.proposal
    live = slice(len(row.given), len(row.tokens))
    sums = np.zeros(5) if terms is None else terms[live].sum(0)
    reads_first = bool(proposal.want & {"logprob", "token_kl"}) or proposal.sampling.branch_first
    return Rollout(
        particle=row.particle,
        text="",  # the policy decodes
        token_ids=tuple(row.tokens),
        finish_reason=row.finish or "length",
        num_generated_tokens=len(row.tokens) - len(row.given),
        control_inner=float(sums[INNER]),
        control_square=float(sums[SQUARE]),
        logprob=float(sums[LOGPROB]) if "logprob" in proposal.want else math.nan,
        token_kl=float(sums[TOKEN_KL]) if "token_kl" in proposal.want else math.nan,
        first_logit=float(terms[len(row.given), FIRST_LOGIT]) if terms is not None and reads_first else math.nan,
        prelogits=None if prelogits is None else prelogits[live].copy(),
    )


def _batch_invariant() -> bool:
    import vllm.envs as envs

    return bool(getattr(envs, "VLLM_BATCH_INVARIANT", False))
