"""What a step's numbers mean for its rows: tokens appended, sums kept, ends found. On the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from aisp_ray.engine.base import Decode
from aisp_ray.engine.rows import Row

STRING_CHECK = 4  # tokens between two searches of a row's text for stop strings


class Readout:
    """The tensors of one or several steps, [S, B] by name, brought to the host at once."""

    def __init__(self, found: dict[str, Tensor], control_sums: np.ndarray):
        self.tokens: list[list[int]] = found["token"].tolist()
        self._columns = {n: found[n].double().tolist() for n in found if n not in ("token", "prelogits")}
        self._control = control_sums.tolist()  # [S, B, 2]
        self._prelogits = found["prelogits"].float().cpu().numpy() if "prelogits" in found else None

    def __len__(self) -> int:
        return len(self.tokens)

    def terms(self, step: int, slot: int, feeds_back: bool) -> tuple[float, float, float, float]:
        """(u.v, |u|^2, log-probability, KL) of a position."""
        read = lambda name: self._columns[name][step][slot] if name in self._columns else 0.0  # noqa: E731
        inner, square = (read("feedback"),) * 2 if feeds_back else self._control[step][slot]
        return inner, square, read("logprob"), read("token_kl")

    def logit(self, step: int, slot: int) -> float:
        return self._columns["logit"][step][slot]

    def prelogits(self, step: int, slot: int) -> Any:
        return self._prelogits[step, slot].copy()


def take(row: Row, readout: Readout, step: int, slot: int, decode: Decode | None) -> None:
    """Append the row's token of a step, and set `row.finish` if that ends it."""
    active = row.active
    row.tokens.append(readout.tokens[step][slot])
    if len(row.tokens) <= len(row.forced):
        return  # given, not generated
    if active.has_terms:
        row.terms.append(readout.terms(step, slot, active.feeds_back))
    if active.wants_base and len(row.tokens) == len(row.forced) + 1:
        row.first_logit = readout.logit(step, slot)
    if "prelogits" in active.request.proposal.want:
        row.prelogits.append(readout.prelogits(step, slot))
    _end(row, decode)


def _end(row: Row, decode: Decode | None) -> None:
    active, count = row.active, len(row.tokens)
    last = count >= active.request.max_new_tokens
    stopped = row.tokens[-1] in active.stop_ids
    due = stopped or last or count - row.checked >= STRING_CHECK
    if due and decode is not None and active.request.stop.strings:
        cut = _string_end(row, decode)
        if cut is not None and not (stopped and cut == count):
            row.cut(cut)
            row.finish = "stop_string"
            return
        row.checked = count
    if stopped:
        row.finish = "stop"
    elif last:
        row.finish = "length"


def _string_end(row: Row, decode: Decode) -> int | None:
    """The smallest number of tokens, not searched before, whose text has a stop string."""
    stop = row.active.request.stop

    def found(count: int) -> bool:
        tokens = row.tokens[:count]
        return stop.string_start(decode(tokens), tokens, decode) is not None

    if not found(len(row.tokens)):
        return None
    start = max(row.checked, len(row.forced), stop.min_new_tokens - 1) + 1
    return next((count for count in range(start, len(row.tokens) + 1) if found(count)), None)
