"""The fast engine: shared prefixes, row slots with refill, controls drawn ahead; exact, on unmodified models.

One `step()` decodes the next token of every live row, on CUDA the next few. Rows of any prompts and iterations sit in
the slots, each at its own position; a row that ends gives its slot to the next one in the queue. docs/engine.md tells
how and why.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from aisp_ray.config import locate
from aisp_ray.controls.laws import Feedback
from aisp_ray.engine.base import Engine, RolloutRequest, broken_logits
from aisp_ray.engine.draws import controls, uniforms
from aisp_ray.engine.means import Means, Source, teacher_force
from aisp_ray.engine.rows import BEYOND, Active, Found, Readout, Row, take
from aisp_ray.engine.runner import Tile
from aisp_ray.engine.slots import RING, Slots, Ways
from aisp_ray.lm.checkpoints import pin_arithmetic
from aisp_ray.lm.head import Head
from aisp_ray.lm.memory import free_bytes
from aisp_ray.lm.prefixes import PrefixStore, continued, prefill
from aisp_ray.lm.support import require_supported
from aisp_ray.types import Rollouts

WANTS = frozenset({"logprob", "token_kl", "prelogits"})
_WAYS = Ways()
_LOOK = 0.1  # what a look at the host costs, in steps; a guess, until it is measured on a GPU


class FastEngine(Engine):
    """`engine.base.Engine` with shared prefixes and refilled slots.

    model: a loaded causal language model, on one device or spread by a device map.
    slots: rows decoded at once, or "auto" from free memory. tile: slots of one forward; equal tiles give equal bits.
    max_new_tokens: the longest response; the suffix buffers are this long. prefix_bytes: what prompts may take, a fifth
    of the free memory if None. longest_prompt: tokens of the longest prompt, others are refused; None takes any. ways:
    how steps are run, as suits the device if not told.

    Raises:
        UnsupportedModelError: the model's cache cannot be shared; the text says why.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: Any,
        slots: int | str | None = "auto",
        decode: Callable[[Sequence[int]], str] | None = None,
        max_new_tokens: int = 128,
        tile: int | None = None,
        prefix_bytes: int | None = None,
        longest_prompt: int | None = None,
        ways: Ways = _WAYS,
    ):
        require_supported(model)
        self.model = model.eval()
        self.head = Head(model)
        self.device = self.head.weight.device
        self.max_new_tokens = max_new_tokens
        self._decode_text = decode
        if self.device.type == "cuda":
            pin_arithmetic()
        self._longest_prompt = longest_prompt
        self.slots = Slots(model, self.head, slots, tile, max_new_tokens, longest_prompt, ways)
        self.store = PrefixStore(
            lambda ids: prefill(model.base_model, ids, model.device), prefix_bytes or free_bytes(self.device) // 5
        )
        self.means = Means(limit_bytes=free_bytes(self.device) // 16)
        self._queue: deque[Active] = deque()
        self._active: dict[int, Active] = {}
        self._finished: list[tuple[int, Rollouts | Exception]] = []
        self._phase = self._next_ticket = 0
        self._usual_length = float(max_new_tokens)  # of the rows that ended last, in steps
        self._begin_seconds = 0.0  # of this step, charged to the requests that began in it
        self._noise_scale = round(self.head.noise_scale(), 4)
        self.forget()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a row's bits depend on."""
        return {
            "engine": "fast",
            "dtype": str(self.head.dtype),
            "device": self.device.type,
            "noise_scale": self._noise_scale,  # of the logits, for sigma 1 on the pre-logits
            "tile": self.slots.tile_rows,
            "ahead": self.slots.ways.ahead,
            "flash": self.slots.ways.flash,
            "kernels": self.slots.own_kernels,
            "widths": self.slots.widths,
            "max_new_tokens": self.max_new_tokens,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def longest_prompt(self) -> int | None:
        return self._longest_prompt

    def forget(self) -> None:
        """Drop the prompts that are not in use, and count from 0 again."""
        self.store.trim(0)
        self.store.hits = self.store.misses = self.means.updates = 0
        self._row_steps = self._useful_row_steps = self._resumed_tokens = 0
        self._busy_row_steps = self._busy_useful_row_steps = 0  # of steps that left rows waiting

    @property
    def num_pending(self) -> int:
        return len(self._queue) + len(self._active) + len(self._finished)

    def submit(self, request: RolloutRequest) -> int:
        """Queue a request; returns its ticket.

        Raises:
            ValueError: a setting that this engine cannot serve.
        """
        if not 0 < request.max_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"max_new_tokens is {request.max_new_tokens}; this engine was built for 1 to {self.max_new_tokens}"
            )
        request.check(self._decode_text)
        if not request.proposal.want <= WANTS:
            raise ValueError(f"want is {sorted(request.proposal.want)}; known are {sorted(WANTS)}")
        self._next_ticket += 1
        self._queue.append(Active(self._next_ticket, request))
        return self._next_ticket

    @torch.no_grad()
    def step(self) -> list[tuple[int, Rollouts | Exception]]:
        """Decode the next token of every live row (on CUDA the next few); returns the tickets that finished."""
        started, self._begin_seconds = time.perf_counter(), 0.0
        if self.slots.ways.ahead and not self.slots.live:
            self._phase = 0  # the longest windows fit
        self._fill()
        if not self._waiting:
            self.slots.compact()
        stepped = [row.active for tile in self.slots.live for _, row in tile.live]
        count = self._window()
        launched: list[tuple[Tile, Readout | None]] = []
        for tile in self.slots.live:
            if not tile.live:
                continue  # its rows' request has failed meanwhile
            try:
                if self._phase == 0:
                    tile.refresh()
                tile.fit()
                tile.plan_rows()
                launched.append((tile, self._decode(tile, count)))
            except torch.OutOfMemoryError as error:
                self.store.trim(0)
                for row in self.slots.give_up(tile, error):
                    row.active.waiting.append(row)
        for tile, readout in launched:  # all are on their way before one is waited for
            if readout is not None:
                self._read(tile, readout)
        self._phase = (self._phase + count) % RING
        self._share(time.perf_counter() - started - self._begin_seconds, stepped)
        self._collect()
        finished, self._finished = self._finished, []
        return finished

    def _window(self) -> int:
        """Steps until the host looks again, a power of two. A look costs as much as a part of a step; a row that ends
        between two of them leaves its slot empty until the next, for half of the steps on average."""
        if not self.slots.ways.ahead:
            return 1
        rows = [row for tile in self.slots.live for _, row in tile.live]
        left = max((row.active.request.max_new_tokens - row.step for row in rows), default=1)
        best = RING
        if self._waiting:
            best = min((1, 2, 4, RING), key=lambda n: (n - 1) / (2 * self._usual_length) + _LOOK / n)
        while best > 1 and (best >= 2 * left or self._phase % best):
            best //= 2
        return best

    def stats(self) -> dict[str, float]:
        return {
            "slots": float(self.slots.count),
            "row_steps": float(self._row_steps),
            "useful_row_steps": float(self._useful_row_steps),
            "busy_row_steps": float(self._busy_row_steps),
            "busy_useful_row_steps": float(self._busy_useful_row_steps),
            "prefix_hits": float(self.store.hits),
            "prefix_misses": float(self.store.misses),
            "prefix_bytes": float(self.store.num_bytes),
            "suffix_bytes": float(self.slots.num_bytes),
            "kv_bytes": float(self.store.num_bytes + self.slots.num_bytes),
            "resumed_tokens": float(self._resumed_tokens),
            "mean_updates": float(self.means.updates),
        }

    # rows into slots

    @property
    def _waiting(self) -> bool:
        """Whether rows wait for a slot."""
        return bool(self._queue) or any(active.waiting for active in self._active.values())

    def _fill(self) -> None:
        """Give every free slot a row: first of requests in flight, then of the queue."""
        for active in [a for a in self._active.values() if a.waiting]:
            self._place(active)
        while self._queue and self.slots.free() is not None:
            begun = self._activate()
            if begun is None:
                return
            self._place(begun)

    def _place(self, active: Active) -> None:
        """Start as many of the request's waiting rows as there is room for."""
        while active.waiting:
            tile = self.slots.free(active.prefix)
            if tile is None:
                return
            for slot in tile.free[: min(len(active.waiting), tile.room(active.prefix))]:
                tile.start(slot, active.waiting.popleft(), active.prefix, self._phase)

    def _activate(self) -> Active | None:
        """The next request of the queue, read and with its first controls drawn; one that fails is answered."""
        while self._queue:
            active = self._queue.popleft()
            started = time.perf_counter()
            try:
                self._begin(active)
            except Exception as error:
                self._abandon(active)
                if isinstance(error, torch.OutOfMemoryError) and self._active:
                    self._queue.appendleft(active)  # again when rows have ended
                    return None
                self._finished.append((active.ticket, error))
                continue
            seconds = time.perf_counter() - started
            active.seconds += seconds
            self._begin_seconds += seconds
            self._active[active.ticket] = active
            return active
        return None

    def _abandon(self, active: Active) -> None:
        if active.read is not None:
            self.store.release(active.read)
        active.read = active.first_control = active.first_uniform = None
        self.store.trim(0)

    def _begin(self, active: Active) -> None:
        request = active.request
        count, most = len(request.prompt_ids), self.longest_prompt
        if most is not None and most < count:
            raise ValueError(f"the prompt has {count} tokens; this engine was built for at most {most}")
        active.read, active.prefix_hit = self.store.acquire(request.prompt_ids)
        for row in active.rows:
            if len(row.forced) > 1:
                row.resume(*active.prefix.snapshots.find(row.forced[:-1]))
        self._resumed_tokens += sum(row.resumed for row in active.rows)
        control = request.proposal.control
        if isinstance(control, Feedback):
            active.law = locate(control.target)(device=self.device, dim=self.head.dim, **dict(control.options))
        active.mean = self.means.get(active, lambda: self._source(active))
        if active.mean is not None:
            active.control_norm = float(active.mean.double().norm())
        if active.draws_control:
            active.first_control, active.first_sums = controls(active.rows, RING, self.head.dim, self.device)
        if request.proposal.sampling.temperature > 0:
            active.first_uniform = uniforms(active.rows, RING, self.device)

    def _source(self, active: Active) -> Source:
        prefix = active.prefix
        replay = lambda ids: teacher_force(self.model.base_model, continued, prefix, ids)  # noqa: E731
        return Source(active.request.key, self.head, self.device, replay)

    # one step

    def _decode(self, tile: Tile, count: int) -> Readout | None:
        """`count` steps of a tile that runs ahead, on their way; or one, read before its forward."""
        if self.slots.ways.ahead:
            tile.place_lanes()
            furthest = max(row.step for _, row in tile.live) + count - 1
            found = self.slots.captures[tile].run(self._phase, count, tile.suffixes.blocks_for(furthest))
            return Readout(found)
        found = Found.of(tile.pick(self._phase), tile.drawn(tile.control_sums, self._phase))
        self._read(tile, Readout(found))
        steps = [row.step - 1 for _, row in tile.live]
        if steps:
            tile.fit()  # rows have ended
            tile.place_lanes()
            tile.forward(tile.suffixes.blocks_for(max(steps)))
        return None

    def _read(self, tile: Tile, readout: Readout) -> None:
        """Give the rows their tokens and end those that are done."""
        waiting, useful = self._waiting, 0
        readout.wait()
        count = len(readout) * len(readout.tokens)
        for slot, row in tile.live:
            if row.active.ticket not in self._active:
                continue  # its request failed
            taken = take(row, readout, slot, self._decode_text)
            useful += taken
            if row.finish is not None:
                self._usual_length += 0.1 * (row.step - row.resumed - self._usual_length)
                self._save(tile, slot, row)
                tile.retire(slot)
                row.active.num_done += 1
            elif taken < len(readout):  # there was no token
                self._retry_or_fail(tile, slot, readout.tokens[slot][taken])
        self._useful_row_steps += useful
        self._row_steps += count
        self._busy_row_steps += count * waiting
        self._busy_useful_row_steps += useful * waiting

    def _retry_or_fail(self, tile: Tile, slot: int, instead: int) -> None:
        """A row has no token at its position. instead: what it has in its place."""
        row = tile.rows[slot]
        assert row is not None
        if instead != BEYOND:
            self._fail(row.active, broken_logits(str(self.head.dtype), row.particle, row.step))
            return
        row.active.ranks_all = True
        tile.retire(slot)
        row.reset()
        row.active.waiting.append(row)

    def _fail(self, active: Active, error: Exception) -> None:
        """End a request in flight with an exception; its rows leave their slots."""
        for tile in self.slots.tiles:
            for slot, row in tile.live:
                if row.active is active:
                    tile.retire(slot)
        self._active.pop(active.ticket)
        self.store.release(active.prefix)
        self._finished.append((active.ticket, error))

    def _save(self, tile: Tile, slot: int, row: Row) -> None:
        """Keep the row's suffix if its method may continue it."""
        # captured steps and those up to a stop string have run the states past the row's end
        is_ahead = tile.cache.states() and (self.slots.ways.ahead or row.finish == "stop_string")
        if row.active.may_be_continued and len(row.tokens) > 1 and not is_ahead:
            self.store.keep(row.active.prefix, tile.cache.save_row(slot, row.tokens))

    @staticmethod
    def _share(seconds: float, stepped: Sequence[Active]) -> None:
        """Charge a step to the requests that had rows in it, named once a row."""
        for active in stepped:
            active.seconds += seconds / len(stepped)

    def _collect(self) -> None:
        for ticket in [t for t, active in self._active.items() if active.num_done == len(active.rows)]:
            active = self._active.pop(ticket)
            self.store.release(active.prefix)
            self._finished.append((ticket, active.rollouts()))
