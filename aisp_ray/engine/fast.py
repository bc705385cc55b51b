"""The fast engine: shared prefixes, row slots with refill, controls drawn ahead; exact, on unmodified models.

One `step()` decodes one token of every live row. Rows of any prompts and iterations sit in the slots, each at its own
position; a row that ends gives its slot to the next one in the queue. docs/engine.md tells how and why.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from aisp_ray.controls import Feedback
from aisp_ray.engine._head import Head
from aisp_ray.engine._source import Source
from aisp_ray.engine.attention import configs_of
from aisp_ray.engine.base import RolloutRequest
from aisp_ray.engine.draws import Means, controls, uniforms
from aisp_ray.engine.memory import choose_prefix_bytes, choose_slots, row_bytes
from aisp_ray.engine.packing import Packing
from aisp_ray.engine.prefixes import PrefixStore, continued, layouts_of, prefill
from aisp_ray.engine.replay import teacher_force
from aisp_ray.engine.rowcache import RowCache
from aisp_ray.engine.rows import Active, Row
from aisp_ray.engine.support import require_supported
from aisp_ray.engine.tile import Body, Tile
from aisp_ray.loading import locate
from aisp_ray.types import Rollouts

log = logging.getLogger(__name__)
WANTS = frozenset({"logprob", "token_kl", "prelogits"})


class FastEngine:
    """`engine.base.Engine` with shared prefixes and refilled slots.

    model: a loaded causal language model, on one device or spread by a device map.
    slots: rows decoded at once, or "auto" from free memory. tile: slots of one forward; equal tiles give equal bits.
    max_new_tokens: the longest response; the suffix buffers are this long. ring: steps drawn ahead in one call.

    Raises:
        UnsupportedModelError: the model's cache cannot be shared; the text says why.
    """

    def __init__(
        self,
        model: Any,
        slots: int | str | None = "auto",
        decode: Callable[[Sequence[int]], str] | None = None,
        max_new_tokens: int = 128,
        tile: int | None = None,
        prefix_bytes: int | None = None,
    ):
        require_supported(model)
        self.model = model.eval()
        self.head = Head(model)
        self.device = self.head.weight.device
        self.max_new_tokens = max_new_tokens
        self._decode = decode
        self._ring = 8
        self._probe = prefill(model.base_model, [0, 0], model.device)
        self._layouts = layouts_of(self._probe)
        per_row = row_bytes(self._layouts, max_new_tokens, self.head, self._ring)
        self.slots = choose_slots(slots, per_row, self.device)
        self.tile_rows = min(tile or choose_tile(model, self.device), self.slots)
        self.slots -= self.slots % self.tile_rows
        self.store = PrefixStore(
            lambda ids: prefill(model.base_model, ids, model.device), prefix_bytes or choose_prefix_bytes(self.device)
        )
        self.means = Means()
        self._body = Body(model, configs_of(model), Packing(model, self.tile_rows))
        self._tiles: list[Tile] = []
        self._queue: deque[Active] = deque()
        self._active: dict[int, Active] = {}
        self._finished: list[tuple[int, Rollouts | Exception]] = []
        self._phase = self._next_ticket = self._row_steps = self._useful_row_steps = 0
        self._busy_row_steps = self._busy_useful_row_steps = 0  # of steps that left rows waiting
        self.fingerprint = {
            "engine": "fast",
            "dtype": str(self.head.dtype),
            "device": self.device.type,
            "tile": self.tile_rows,
            "packed": len(self._body.packing) > 0,
            "max_new_tokens": max_new_tokens,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def num_pending(self) -> int:
        return len(self._queue) + len(self._active) + len(self._finished)

    def submit(self, request: RolloutRequest) -> int:
        """Queue a request; returns its ticket.

        Raises:
            ValueError: a setting that this engine cannot serve.
        """
        self._check(request)
        self._next_ticket += 1
        self._queue.append(Active(self._next_ticket, request))
        return self._next_ticket

    def _check(self, request: RolloutRequest) -> None:
        proposal = request.proposal
        if not request.prompt_ids:
            raise ValueError("the prompt has no tokens")
        if not 0 < request.max_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"max_new_tokens is {request.max_new_tokens}; this engine was built for 1 to {self.max_new_tokens}"
            )
        if request.stop.strings and self._decode is None:
            raise ValueError("stop strings need a `decode` function")
        if not proposal.want <= WANTS:
            raise ValueError(f"want is {sorted(proposal.want)}; known are {sorted(WANTS)}")
        if any(len(prefix) >= request.max_new_tokens for prefix in proposal.prefixes or ()):
            raise ValueError(f"a prefix to continue from is not shorter than max_new_tokens={request.max_new_tokens}")

    @torch.no_grad()
    def step(self) -> list[tuple[int, Rollouts | Exception]]:
        """Decode one token of every live row; returns the tickets that finished."""
        started = time.perf_counter()
        self._fill()
        if self._phase == 0:
            for tile in self._tiles:
                tile.refresh()
        for tile in self._tiles:
            if tile.live:
                self._decode_one(tile)
        self._phase = (self._phase + 1) % self._ring
        self._share(time.perf_counter() - started)
        self._collect()
        finished, self._finished = self._finished, []
        return finished

    def stats(self) -> dict[str, float]:
        return {
            "slots": float(self.slots),
            "row_steps": float(self._row_steps),
            "useful_row_steps": float(self._useful_row_steps),
            "busy_row_steps": float(self._busy_row_steps),
            "busy_useful_row_steps": float(self._busy_useful_row_steps),
            "prefix_hits": float(self.store.hits),
            "prefix_misses": float(self.store.misses),
            "prefix_bytes": float(self.store.num_bytes),
            "suffix_bytes": float(sum(tile.cache.num_bytes for tile in self._tiles)),
            "kv_bytes": float(self.store.num_bytes + sum(tile.cache.num_bytes for tile in self._tiles)),
            "mean_updates": float(self.means.updates),
        }

    # rows into slots

    def _fill(self) -> None:
        """Give every free slot a row: first of requests in flight, then of the queue."""
        while True:
            active = next((a for a in self._active.values() if a.waiting), None) or self._activate()
            if active is None:
                return
            tile = self._tile_with_room()
            if tile is None:
                return
            for slot in tile.free[: len(active.waiting)]:
                tile.start(slot, active.waiting.popleft(), active.prefix, self._phase)

    def _tile_with_room(self) -> Tile | None:
        for tile in self._tiles:
            if None in tile.rows:
                return tile
        if (len(self._tiles) + 1) * self.tile_rows > self.slots:
            return None
        cache = RowCache(self._probe, self._layouts, self.tile_rows, self.max_new_tokens)
        self._tiles.append(Tile(self._body, self.head, cache, self._ring))
        return self._tiles[-1]

    def _activate(self) -> Active | None:
        """The next request of the queue, read and with its first controls drawn; one that fails is answered."""
        while self._queue and self._tile_with_room() is not None:
            active = self._queue.popleft()
            started = time.perf_counter()
            try:
                self._begin(active)
            except torch.OutOfMemoryError:
                self._queue.appendleft(active)
                raise
            except Exception as error:
                if active.prefix is not None:
                    self.store.release(active.prefix)
                self._finished.append((active.ticket, error))
                continue
            active.seconds += time.perf_counter() - started
            self._active[active.ticket] = active
            return active
        return None

    def _begin(self, active: Active) -> None:
        request = active.request
        active.prefix, active.prefix_hit = self.store.acquire(request.prompt_ids)
        control = request.proposal.control
        if isinstance(control, Feedback):
            active.law = locate(control.target)(device=self.device, dim=self.head.dim, **dict(control.options))
        active.mean = self.means.get(active, lambda: self._source(active))
        if active.mean is not None:
            active.control_norm = float(active.mean.double().norm())
        if active.draws_control:
            active.first_control, active.first_sums = controls(active.rows, self._ring, self.head.dim, self.device)
        if request.proposal.sampling.temperature > 0:
            active.first_uniform = uniforms(active.rows, self._ring, self.device)

    def _source(self, active: Active) -> Source:
        prefix = active.prefix
        replay = lambda ids: teacher_force(self.model.base_model, continued, prefix, ids)  # noqa: E731
        return Source(active.request.key, self.head, self.device, replay)

    # one step

    def _decode_one(self, tile: Tile) -> None:
        tile.prepare()
        found = tile.pick(self._phase)
        self._read(tile, found)
        steps = [row.step for _, row in tile.live]
        if steps:
            tile.forward(max(steps) - 1)

    def _read(self, tile: Tile, found: dict[str, Tensor]) -> None:
        """Take a step's tokens and sums to the host, and end the rows that are done."""
        tokens = found["token"].tolist()
        zero = [0.0] * len(tokens)
        read = lambda name: found[name].double().tolist() if name in found else zero  # noqa: E731
        feedback, logprob, token_kl, logit = read("feedback"), read("logprob"), read("token_kl"), read("logit")
        sums = tile.control_sums[self._phase].tolist()
        prelogits = found["prelogits"].float().cpu().numpy() if "prelogits" in found else None
        self._row_steps += len(tokens)
        busy = bool(self._queue) or any(active.waiting for active in self._active.values())
        self._busy_row_steps += len(tokens) * busy
        self._busy_useful_row_steps += len(tile.live) * busy
        for slot, row in tile.live:
            self._useful_row_steps += 1
            active = row.active
            row.tokens.append(tokens[slot])
            if len(row.tokens) > len(row.forced):
                if active.has_terms:
                    inner, square = (feedback[slot],) * 2 if active.feeds_back else sums[slot]
                    row.terms.append((inner, square, logprob[slot], token_kl[slot]))
                if len(row.tokens) == len(row.forced) + 1 and active.wants_base:
                    row.first_logit = logit[slot]
                if prelogits is not None and "prelogits" in active.request.proposal.want:
                    row.prelogits.append(prelogits[slot].copy())
                self._end(row)
                if row.finish is not None:
                    tile.retire(slot)
                    active.num_done += 1

    def _end(self, row: Row) -> None:
        """Set `row.finish` if its last token ends it."""
        active, count = row.active, len(row.tokens)
        last = count >= active.request.max_new_tokens
        stopped = row.tokens[-1] in active.stop_ids
        if active.request.stop.strings and (stopped or last or count - row.checked >= 4):
            cut = self._string_end(row)
            if cut is not None and not (stopped and cut == count):
                row.cut(cut)
                row.finish = "stop_string"
                return
            row.checked = count
        if stopped:
            row.finish = "stop"
        elif last:
            row.finish = "length"

    def _string_end(self, row: Row) -> int | None:
        """The smallest number of tokens, not searched before, whose text has a stop string."""
        stop = row.active.request.stop
        found = lambda count: any(s in self._decode(row.tokens[:count]) for s in stop.strings)  # noqa: E731
        if not found(len(row.tokens)):
            return None
        start = max(row.checked, len(row.forced), stop.min_new_tokens - 1) + 1
        return next((count for count in range(start, len(row.tokens) + 1) if found(count)), None)

    def _share(self, seconds: float) -> None:
        """Charge a step to the requests that had rows in it."""
        live = [row.active for tile in self._tiles for _, row in tile.live]
        for active in live:
            active.seconds += seconds / len(live)

    def _collect(self) -> None:
        for ticket in [t for t, active in self._active.items() if active.num_done == len(active.rows)]:
            active = self._active.pop(ticket)
            self.store.release(active.prefix)
            self._finished.append((ticket, active.rollouts()))


def choose_tile(model: Any, device: torch.device) -> int:
    """Slots of one forward. A CPU gains little above 64 rows, unless the model is so small that calls are what costs;
    a GPU is bound by reading the weights below a few hundred."""
    if device.type != "cpu":
        return 256
    return 128 if sum(p.numel() for p in model.parameters()) < 5e6 else 64
