"""The fast engine: shared prefixes, row slots with refill, controls drawn ahead; exact, on unmodified models.

One `step()` decodes one token of every live row. Rows of any prompts and iterations sit in the slots, each at its own
position; a row that ends gives its slot to the next one in the queue. docs/engine.md tells how and why.
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
from aisp_ray.engine.draws import BROKEN, controls, uniforms
from aisp_ray.engine.means import Means, Source, teacher_force
from aisp_ray.engine.rows import Active, Readout, Row, take
from aisp_ray.engine.runner import Tile
from aisp_ray.engine.slots import RING, Slots
from aisp_ray.lm.head import Head
from aisp_ray.lm.memory import free_bytes
from aisp_ray.lm.prefixes import PrefixStore, continued, prefill
from aisp_ray.lm.support import require_supported
from aisp_ray.types import Rollouts

WANTS = frozenset({"logprob", "token_kl", "prelogits"})


class FastEngine(Engine):
    """`engine.base.Engine` with shared prefixes and refilled slots.

    model: a loaded causal language model, on one device or spread by a device map.
    slots: rows decoded at once, or "auto" from free memory. tile: slots of one forward; equal tiles give equal bits.
    max_new_tokens: the longest response; the suffix buffers are this long. prefix_bytes: what prompts may take, a fifth
    of the free memory if None. stack: the longest prompt in tokens if steps are to have fixed addresses, as CUDA graphs
    need (chosen on CUDA if None); 0 or None on a CPU takes prompts of any length. kernels: use the engine's own
    products (kernels.c) on a CPU in float32, where a C compiler is found.

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
        stack: int | None = None,
        kernels: bool = True,
    ):
        require_supported(model)
        self.model = model.eval()
        self.head = Head(model)
        self.device = self.head.weight.device
        self.max_new_tokens = max_new_tokens
        self._decode_text = decode
        self.slots = Slots(model, self.head, slots, tile, max_new_tokens, stack, kernels)
        self.store = PrefixStore(
            lambda ids: prefill(model.base_model, ids, model.device), prefix_bytes or free_bytes(self.device) // 5
        )
        self.means = Means()
        self._queue: deque[Active] = deque()
        self._active: dict[int, Active] = {}
        self._finished: list[tuple[int, Rollouts | Exception]] = []
        self._phase = self._next_ticket = 0
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
            "stack": self.slots.capacity,
            "kernels": self.slots.own_kernels,
            "widths": self.slots.widths,
            "max_new_tokens": self.max_new_tokens,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def longest_prompt(self) -> int | None:
        return self.slots.capacity or None

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
        self._fill()
        if not self._waiting and not self.slots.capacity:
            self.slots.compact()
        stepped = [row.active for tile in self.slots.live for _, row in tile.live]
        for tile in self.slots.live:
            if not tile.live:
                continue  # its rows' request has failed meanwhile
            try:
                if self._phase == 0:
                    tile.refresh()
                tile.fit()
                tile.plan_rows()
                self._decode(tile)
            except torch.OutOfMemoryError as error:
                self.store.trim(0)
                for row in self.slots.give_up(tile, error):
                    row.active.waiting.append(row)
        self._phase = (self._phase + (RING if self.slots.capacity else 1)) % RING
        self._share(time.perf_counter() - started - self._begin_seconds, stepped)
        self._collect()
        finished, self._finished = self._finished, []
        return finished

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
        count, most = len(request.prompt_ids), self.slots.capacity
        if 0 < most < count:
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

    def _decode(self, tile: Tile) -> None:
        if self.slots.capacity:
            tile.place_lanes()
            furthest = max(row.step for _, row in tile.live) + RING - 1
            found = self.slots.captures[tile].run(RING, tile.suffixes.blocks_for(furthest))
            self._read(tile, Readout(found, tile.control_sums))
            return
        found = {name: tensor[None] for name, tensor in tile.pick(self._phase).items()}
        self._read(tile, Readout(found, tile.control_sums[self._phase : self._phase + 1]))
        steps = [row.step - 1 for _, row in tile.live]
        if steps:
            tile.fit()  # rows have ended
            tile.place_lanes()
            tile.forward(tile.suffixes.blocks_for(max(steps)))

    def _read(self, tile: Tile, readout: Readout) -> None:
        """Give the rows their tokens and end those that are done."""
        waiting, before = self._waiting, self._useful_row_steps
        for step in range(len(readout)):
            for slot, row in tile.live:
                if row.active.ticket not in self._active:
                    continue  # its request failed
                if readout.tokens[step][slot] == BROKEN:
                    self._fail(row.active, broken_logits(str(self.head.dtype), row.particle, row.step))
                    continue
                take(row, readout, step, slot, self._decode_text)
                self._useful_row_steps += 1
                if row.finish is not None:
                    self._save(tile, slot, row)
                    tile.retire(slot)
                    row.active.num_done += 1
        count = len(readout) * tile.width
        self._row_steps += count
        self._busy_row_steps += count * waiting
        self._busy_useful_row_steps += (self._useful_row_steps - before) * waiting

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
        is_ahead = tile.cache.states() and (self.slots.capacity or row.finish == "stop_string")
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
