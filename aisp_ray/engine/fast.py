"""The fast engine: shared prefixes, row slots with refill, controls drawn ahead; exact, on unmodified models.

One `step()` decodes one token of every live row. Rows of any prompts and iterations sit in the slots, each at its own
position; a row that ends gives its slot to the next one in the queue. docs/engine.md tells how and why.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers

from aisp_ray.config import locate
from aisp_ray.controls.laws import Feedback
from aisp_ray.engine._source import Source
from aisp_ray.engine.base import RolloutRequest
from aisp_ray.engine.cpu.direct import can_attend
from aisp_ray.engine.cpu.kernels import usable
from aisp_ray.engine.cpu.packing import Packing
from aisp_ray.engine.cuda.capture import Capture, Pool
from aisp_ray.engine.draws import Means, controls, uniforms
from aisp_ray.engine.memory import choose_prefix_bytes, choose_slots, give_back, row_bytes
from aisp_ray.engine.reading import Readout, take
from aisp_ray.engine.replay import teacher_force
from aisp_ray.engine.rowcache import RowCache
from aisp_ray.engine.rows import Active, Row
from aisp_ray.engine.tile import Body, Tile
from aisp_ray.engine.widths import equal_reaches, equal_widths
from aisp_ray.lm.head import Head
from aisp_ray.lm.prefixes import Prefix, PrefixStore, UnsupportedModelError, continued, layouts_of, prefill
from aisp_ray.lm.shims import attention_configs
from aisp_ray.lm.support import require_supported
from aisp_ray.types import Rollouts

log = logging.getLogger(__name__)
RING = 8  # steps drawn ahead in one call, and steps between two looks of the host at a captured tile
STACK = 2048  # prompt tokens that a captured tile holds, unless told
WANTS = frozenset({"logprob", "token_kl", "prelogits"})


class FastEngine:
    """`engine.base.Engine` with shared prefixes and refilled slots.

    model: a loaded causal language model, on one device or spread by a device map.
    slots: rows decoded at once, or "auto" from free memory. tile: slots of one forward; equal tiles give equal bits.
    max_new_tokens: the longest response; the suffix buffers are this long. prefix_bytes: what prompts may take, from
    free memory if None. stack: the longest prompt in tokens if steps are to have fixed addresses, as CUDA graphs need
    (chosen on CUDA if None); 0 or None on a CPU keeps prompts in place, of any length. kernels: use the engine's own
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
        self._probe = probe(model)
        self._layouts = layouts_of(self._probe)
        self._capacity = (STACK if self.device.type == "cuda" else 0) if stack is None else stack
        per_row = row_bytes(self._layouts, max_new_tokens, self.head, RING, self._capacity)
        self.slots = choose_slots(slots, per_row, self.device)
        self.tile_rows = min(tile or choose_tile(model, self.device), self.slots)
        self.slots -= self.slots % self.tile_rows
        self.store = PrefixStore(
            lambda ids: prefill(model.base_model, ids, model.device), prefix_bytes or choose_prefix_bytes(self.device)
        )
        self.means = Means()
        own = kernels and not self._capacity and self.device.type == "cpu" and self.head.dtype == torch.float32
        self._kernels = usable() if own else None
        self._attention = self._kernels if can_attend(self._layouts) else None
        captures = self.device.type == "cuda" and one_device(model)
        self._body = Body(model, attention_configs(model), Packing(model, self.tile_rows, self._kernels), captures)
        self._tiles: list[Tile] = []
        # numbers of slots that a step may run on, the last is the whole tile
        self._widths: tuple[int, ...] = (self.tile_rows,) if self._capacity else ()
        self._reaches: tuple[int, ...] = ()  # numbers of a suffix block's keys that a step may read alone
        self._captures: dict[int, Capture] = {}
        self._pool = Pool()
        self._queue: deque[Active] = deque()
        self._active: dict[int, Active] = {}
        self._finished: list[tuple[int, Rollouts | Exception]] = []
        self._phase = self._next_ticket = 0
        self._begin_seconds = 0.0  # of this step, charged to the requests that began in it
        self.forget()
        self._noise_scale = round(self.head.noise_scale(), 4)
        self.fingerprint = self._describe()
        if not self._capacity:
            self._first_tile()  # finds out the widths

    def _describe(self) -> dict[str, Any]:
        """The fingerprint: what a row's bits depend on."""
        linear = self._kernels is not None and len(self._body.packing) > 0
        return {
            "engine": "fast",
            "dtype": str(self.head.dtype),
            "device": self.device.type,
            "noise_scale": self._noise_scale,  # of the logits, for sigma 1 on the pre-logits
            "tile": self.tile_rows,
            "stack": self._capacity,
            "packed": len(self._body.packing) > 0,
            # what the engine's own kernels compute
            "kernels": ["linear"] * linear + ["attention"] * (self._attention is not None),
            "widths": self._widths,
            "max_new_tokens": self.max_new_tokens,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def longest_prompt(self) -> int | None:
        """Tokens of the longest prompt it takes; None: any length."""
        return self._capacity or None

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
        request.check(self._decode_text)
        if not proposal.want <= WANTS:
            raise ValueError(f"want is {sorted(proposal.want)}; known are {sorted(WANTS)}")

    @torch.no_grad()
    def step(self) -> list[tuple[int, Rollouts | Exception]]:
        """Decode the next token of every live row (on CUDA the next few); returns the tickets that finished."""
        started, self._begin_seconds = time.perf_counter(), 0.0
        self._fill()
        self._compact()
        stepped = [row.active for tile in self._tiles for _, row in tile.live]
        for tile in [tile for tile in self._tiles if tile.live]:
            try:
                if self._phase == 0:
                    tile.refresh()
                tile.fit()
                tile.plan_rows()
                self._decode(tile)
            except torch.OutOfMemoryError as error:
                self._shrink(tile, error)
        self._phase = (self._phase + (RING if self._capacity else 1)) % RING
        self._share(time.perf_counter() - started - self._begin_seconds, stepped)
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
            "resumed_tokens": float(self._resumed_tokens),
            "mean_updates": float(self.means.updates),
        }

    # rows into slots

    def _fill(self) -> None:
        """Give every free slot a row: first of requests in flight, then of the queue."""
        for active in [a for a in self._active.values() if a.waiting]:
            self._place(active)
        while self._queue and self._free_tile() is not None:
            active = self._activate()
            if active is None:
                return
            self._place(active)

    def _place(self, active: Active) -> None:
        """Start as many of the request's waiting rows as there is room for."""
        while active.waiting:
            tile = self._free_tile(active.prefix)
            if tile is None:
                return
            for slot in tile.free[: min(len(active.waiting), tile.room(active.prefix))]:
                tile.start(slot, active.waiting.popleft(), active.prefix, self._phase)

    def _free_tile(self, prefix: Prefix | None = None) -> Tile | None:
        """The first tile with a free slot (for this prefix), a new one if slots are left; None if all are taken."""
        for tile in self._tiles:
            if tile.rows.count(None) and (prefix is None or tile.room(prefix)):
                return tile
        if (len(self._tiles) + 1) * self.tile_rows > self.slots:
            return None
        if not self._tiles:
            return self._first_tile()
        try:
            return self._new_tile()
        except torch.OutOfMemoryError as error:
            give_back(self.device, error)
            self.slots = len(self._tiles) * self.tile_rows
            log.warning("out of memory: going on with %d slots (%s)", self.slots, error)
            return None

    def _first_tile(self) -> Tile:
        """A tile while there is none, of as many slots as there is memory for.

        Raises:
            torch.OutOfMemoryError: not even one slot fits.
        """
        while True:
            try:
                return self._new_tile()
            except torch.OutOfMemoryError as error:
                self.store.trim(0)
                give_back(self.device, error)
                self._halve(error)
                log.warning("out of memory: going on with %d slots in tiles of %d", self.slots, self.tile_rows)

    def _new_tile(self) -> Tile:
        settings = (self.max_new_tokens, self._capacity or None, self._attention)
        cache = RowCache(self._probe, self._layouts, self.tile_rows, *settings)
        tile = Tile(self._body, self.head, cache, RING)
        if self._widths[-1:] != (self.tile_rows,):
            # a captured step has one shape
            self._widths = (self.tile_rows,) if self._capacity else equal_widths(tile, self._probe)
            self._reaches = () if self._capacity else equal_reaches(tile, self._probe, self._widths)
            own = " and ".join(self.fingerprint["kernels"]) or "nothing"
            log.info("engine: a step runs on %s slots; own kernels: %s", ", ".join(map(str, self._widths)), own)
        tile.widths = self.fingerprint["widths"] = self._widths
        cache.reaches = self._reaches
        self._tiles.append(tile)
        self._captures[id(tile)] = Capture(tile, self._body.captures, self._pool)
        return tile

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
        if active.prefix is not None:
            self.store.release(active.prefix)
        active.prefix = active.first_control = active.first_uniform = None
        self.store.trim(0)

    def _begin(self, active: Active) -> None:
        request = active.request
        if 0 < self._capacity < len(request.prompt_ids):
            raise ValueError(f"the prompt has {len(request.prompt_ids)} tokens; this engine stacks {self._capacity}")
        active.prefix, active.prefix_hit = self.store.acquire(request.prompt_ids)
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
        if self._capacity:
            tile.place_lanes()
            furthest = max(row.step for _, row in tile.live) + RING - 1
            found = self._captures[id(tile)].run(RING, tile.cache.blocks_for(furthest))
            self._read(tile, Readout(found, tile.control_sums))
            return
        found = {name: tensor[None] for name, tensor in tile.pick(self._phase).items()}
        self._read(tile, Readout(found, tile.control_sums[self._phase : self._phase + 1]))
        steps = [row.step - 1 for _, row in tile.live]
        if steps:
            tile.fit()  # rows have ended
            tile.place_lanes()
            furthest = max(steps)
            tile.forward(tile.cache.blocks_for(furthest), tile.cache.reach_for(furthest))

    def _read(self, tile: Tile, readout: Readout) -> None:
        """Give the rows their tokens and end those that are done."""
        waiting = bool(self._queue) or any(active.waiting for active in self._active.values())
        before = self._useful_row_steps
        for step in range(len(readout)):
            for slot, row in tile.live:
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

    def _save(self, tile: Tile, slot: int, row: Row) -> None:
        """Keep the row's suffix if its method may continue it."""
        # captured steps and those up to a stop string have run the states past the row's end
        is_ahead = tile.cache.states() and (self._capacity or row.finish == "stop_string")
        if row.active.may_be_continued and len(row.tokens) > 1 and not is_ahead:
            self.store.keep(row.active.prefix, tile.cache.save_row(slot, row.tokens))

    # fewer rows, less memory

    def _compact(self) -> None:
        """When nothing waits, move the rows of the emptiest tile into free slots of the others."""
        if self._queue or self._capacity or any(active.waiting for active in self._active.values()):
            return
        tiles = sorted((tile for tile in self._tiles if tile.live), key=lambda tile: len(tile.live))
        while len(tiles) > 1 and sum(len(tile.free) for tile in tiles[1:]) >= len(tiles[0].live):
            source = tiles.pop(0)
            room = [(tile, slot) for tile in reversed(tiles) for slot in tile.free]
            for (tile, slot), (place, _) in zip(room, source.live, strict=False):
                tile.move(slot, source, place)
            tiles.sort(key=lambda tile: len(tile.live))

    def _shrink(self, tile: Tile, error: Exception) -> None:
        """Out of memory in a tile: give it up and decode its rows again in the others. What a row gives is named by
        its request, so nothing is lost but time; rows change in their last bits only if the tile must be smaller."""
        for slot, row in tile.live:
            row.reset()
            row.active.waiting.append(row)
            tile.retire(slot)
        self._tiles.remove(tile)
        self._captures.pop(id(tile), None)
        tile.drop()
        self.store.trim(0)
        give_back(self.device, error)
        if self._tiles:
            self.slots = len(self._tiles) * self.tile_rows
        else:
            self._halve(error)
        log.warning("out of memory: going on with %d slots in tiles of %d", self.slots, self.tile_rows)

    def _halve(self, error: Exception) -> None:
        """Tiles of half as many slots, while there is no tile. A tile of one slot raises the error."""
        if self.tile_rows == 1:
            raise error
        self.tile_rows //= 2
        self.slots = self.tile_rows
        if self._kernels is None:  # theirs serves any number of rows
            self._body = replace(self._body, packing=Packing(self.model, self.tile_rows))
        self.fingerprint.update(self._describe())

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


def probe(model: Any) -> Prefix:
    """A prompt of two tokens, which shows how the layers cache.

    Raises:
        UnsupportedModelError: the model cannot be called so.
    """
    try:
        return prefill(model.base_model, [0, 0], model.device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an architecture does differently
        raise UnsupportedModelError(f"it cannot be read into a cache ({type(error).__name__}: {error})") from error


def one_device(model: Any) -> bool:
    return len({p.device for p in model.parameters()}) == 1


def choose_tile(model: Any, device: torch.device) -> int:
    """Slots of one forward. A CPU gains little above 64 rows, unless the model is so small that calls are what costs;
    a GPU is bound by reading the weights below a few hundred."""
    if device.type != "cpu":
        return 256
    return 128 if sum(p.numel() for p in model.parameters()) < 5e6 else 64
