"""The slots of an engine: tiles of equal shape, as many as there is memory for, smaller ones where it runs out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aisp_ray.engine.cpu.attention import KernelAttention, can_attend
from aisp_ray.engine.cpu.kernels import usable
from aisp_ray.engine.cpu.packing import Packing
from aisp_ray.engine.cuda import flash
from aisp_ray.engine.cuda.capture import Capture, Graphs
from aisp_ray.engine.draws import NOISE_BYTES
from aisp_ray.engine.rowcache import RowAttention, RowCache, Suffixes
from aisp_ray.engine.rows import Row
from aisp_ray.engine.runner import Body, Tile
from aisp_ray.engine.stacked import LANE, SPAN, StackedAttention, round_up, stacked_tokens
from aisp_ray.lm.head import Head
from aisp_ray.lm.memory import free_bytes, give_back
from aisp_ray.lm.prefixes import LayerLayout, Prefix, layouts_of, prefill
from aisp_ray.lm.shims import attention_configs
from aisp_ray.lm.support import UnsupportedModelError

log = logging.getLogger(__name__)
RING = 8  # steps drawn ahead in one call, and the most between two looks of the host at a tile that runs ahead
STACK = 1024  # prompt tokens that slots are planned for where steps run ahead, unless told
WIDTHS = (16, 32, 64, 128, 256, 512)  # numbers of slots that a step on CUDA may run on
_MOST_SLOTS = {"cpu": 128, "cuda": 1024}


@dataclass(frozen=True, slots=True)
class Ways:
    """How steps are run; None: as suits the device.

    ahead: several steps without a look at the host, at fixed addresses, as on CUDA; else one at a time, as on a CPU.
    narrow: steps that run ahead compute no more slots than hold the rows, whose last bits may then depend on how many
    there are. kernels: the engine's own products (kernels.c) on a CPU in float32, where a C compiler is found.
    flash: PyTorch's FlashAttention in place of stacked prompts, where it can compute the model's attention.
    """

    ahead: bool | None = None
    narrow: bool | None = None
    kernels: bool = True
    flash: bool = False

    def on(self, device: torch.device) -> Ways:
        """With everything decided."""
        cuda = device.type == "cuda"
        ahead = cuda if self.ahead is None else self.ahead
        narrow = (cuda if self.narrow is None else self.narrow) and ahead
        return Ways(ahead, narrow, self.kernels and not ahead, self.flash and ahead)


class Slots:
    """Tiles of `tile_rows` slots, `count` slots at most; the arguments are `FastEngine`'s.

    longest: tokens of the longest prompt, None if that is not known.

    Raises:
        UnsupportedModelError: the model's cache cannot be shared, or not attended as asked; the text says why.
        torch.OutOfMemoryError: not even one slot fits.
    """

    def __init__(
        self,
        model: Any,
        head: Head,
        count: int | str | None,
        tile_rows: int | None,
        length: int,
        longest: int | None,
        ways: Ways,
    ):
        self.head, self.length, self.device = head, length, head.weight.device
        self.ways = ways = ways.on(self.device)
        self.probe = probe(model)
        self.layouts = layouts_of(self.probe)
        if ways.flash and (problem := flash.problem(self.layouts, longest, length)) is not None:
            raise UnsupportedModelError(problem)
        own = ways.kernels and head.dtype == torch.float32 and can_attend(self.layouts)
        self.kernels = usable() if own else None
        stacked = 0 if self.kernels is not None or ways.flash else round_up(longest or STACK) if ways.ahead else SPAN
        self.count = choose_slots(count, row_bytes(self.layouts, length, head, RING, stacked), self.device)
        self.tile_rows = min(tile_rows or choose_tile(model, self.device), self.count)
        self.count -= self.count % self.tile_rows
        one_device = len({p.device for p in model.parameters()}) == 1
        captures = self.device.type == "cuda" and one_device
        self.body = Body(model, attention_configs(model), Packing(model, self.kernels))
        self.tiles: list[Tile] = []
        self.captures: dict[Tile, Capture] = {}
        self.graphs = Graphs(captures)
        self._first()

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of slots that a step may run on, ascending; the last is the whole tile."""
        if self.ways.narrow:
            return (*(width for width in WIDTHS if width < self.tile_rows), self.tile_rows)
        return self.body.packing.widths(self.body.model, self.tile_rows)

    @property
    def own_kernels(self) -> list[str]:
        """What the engine's own kernels compute."""
        if self.kernels is None:
            return []
        return ["linear", "attention"] if len(self.body.packing) else ["attention"]

    @property
    def live(self) -> list[Tile]:
        return [tile for tile in self.tiles if tile.live]

    @property
    def num_bytes(self) -> int:
        return sum(tile.cache.num_bytes for tile in self.tiles)

    def free(self, prefix: Prefix | None = None) -> Tile | None:
        """The first tile with a free slot (for this prefix), a new one if slots are left; None if all are taken."""
        for tile in self.tiles:
            if tile.rows.count(None) and (prefix is None or tile.room(prefix)):
                return tile
        if not self.tiles:
            return self._first()
        if (len(self.tiles) + 1) * self.tile_rows > self.count:
            return None
        try:
            return self._new()
        except torch.OutOfMemoryError as error:
            give_back(self.device, error)
            self.count = len(self.tiles) * self.tile_rows
            self._warn()
            return None

    def _first(self) -> Tile:
        """A tile while there is none, of as many slots as there is memory for."""
        while True:
            try:
                return self._new()
            except torch.OutOfMemoryError as error:
                give_back(self.device, error)
                self._halve(error)
                self._warn()

    def _new(self) -> Tile:
        suffixes = Suffixes(self.layouts, self.tile_rows, self.length, self.device, by_token=self.ways.flash)
        attention: RowAttention
        if self.ways.flash:
            attention = flash.FlashAttention(suffixes)
        elif self.kernels is not None:
            attention = KernelAttention(suffixes, self.kernels)
        else:
            attention = StackedAttention(suffixes, bool(self.ways.ahead), bool(self.ways.narrow))
        tile = Tile(self.body, self.head, RowCache(self.probe, suffixes, attention), RING, self.widths)
        self.tiles.append(tile)
        self.captures[tile] = Capture(tile, self.graphs)
        return tile

    def compact(self) -> None:
        """Move the rows of the emptiest tile into free slots of the others, as long as they fit."""
        tiles = sorted(self.live, key=lambda tile: len(tile.live))
        while len(tiles) > 1 and sum(len(tile.free) for tile in tiles[1:]) >= len(tiles[0].live):
            source = tiles.pop(0)
            for tile in reversed(tiles):
                rows = [(place, row) for place, row in source.live][: len(tile.free)]
                if rows and self._fits(tile, [row for _, row in rows]):
                    tile.move(tile.free[: len(rows)], source, [place for place, _ in rows])
            if source.live:
                return  # their prompts do not fit
            tiles.sort(key=lambda tile: len(tile.live))

    @staticmethod
    def _fits(tile: Tile, rows: Sequence[Row]) -> bool:
        """Whether the tile has room for the prompts of these rows beside its own."""
        attention, owners = tile.cache.attention, [owner for owner in tile.owners if owner is not None]
        for row in rows:
            if attention.room(owners, row.active.prefix) < 1:
                return False
            owners.append(row.active.prefix)
        return True

    def give_up(self, tile: Tile, error: Exception) -> list[Row]:
        """Out of memory in a tile: drop it and return its rows, as if never started. What a row gives is named by its
        request, so nothing is lost but time; rows change in their last bits only if the tile must be smaller."""
        rows = [row for _, row in tile.live]
        for row in rows:
            row.reset()
        self.tiles.remove(tile)
        self.captures.pop(tile)
        tile.drop()
        give_back(self.device, error)
        if self.tiles:
            self.count = len(self.tiles) * self.tile_rows
        else:
            self._halve(error)
        self._warn()
        return rows

    def _halve(self, error: Exception) -> None:
        """Tiles of half as many slots, while there is no tile. A tile of one slot raises the error."""
        if self.tile_rows == 1:
            raise error
        self.tile_rows //= 2
        self.count = self.tile_rows

    def _warn(self) -> None:
        log.warning("out of memory: continuing with %d slots in tiles of %d", self.count, self.tile_rows)


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


def choose_tile(model: Any, device: torch.device) -> int:
    """Slots of one forward. A CPU gains little above 64 rows, unless the model is so small that calls are what costs;
    a GPU is bound by reading the weights below a few hundred."""
    if device.type != "cpu":
        return WIDTHS[-1]
    return 128 if sum(p.numel() for p in model.parameters()) < 5e6 else 64


def row_bytes(layouts: Sequence[LayerLayout | None], length: int, head: Head, ring: int, stacked: int) -> int:
    """Bytes that one slot takes: suffix keys and values, its part of the stacked prompts (`stacked` tokens each, 0 if
    there are none, two lanes for `LANE` slots), controls drawn ahead, logits and what is computed on them."""
    caches = [layout for layout in layouts if layout is not None]
    suffix = sum(layout.token_bytes for layout in caches) * length
    prompts = sum(layout.token_bytes * stacked_tokens(layout, stacked) for layout in caches) * 2 // LANE
    prompts *= stacked > 0
    return suffix + prompts + (ring + 2) * head.dim * 4 + 6 * head.weight.shape[0] * 4


def choose_slots(slots: int | str | None, per_row: int, device: torch.device) -> int:
    """`slots` as a number; "auto" (or None) is the largest power of two that takes at most half of the free memory."""
    if isinstance(slots, int) and not isinstance(slots, bool):
        if slots < 1:
            raise ValueError(f"slots is {slots}; decode at least 1 row at once, or give auto")
        return slots
    if slots not in ("auto", None):
        raise ValueError(f"slots is {slots!r}; it is a number of rows or auto")
    most = _MOST_SLOTS.get(device.type, 256)
    chosen, free = 1, free_bytes(device) - (NOISE_BYTES if device.type == "cuda" else 0)
    while chosen * 2 <= most and chosen * 2 * per_row <= free // 2:
        chosen *= 2
    log.info("engine: %d slots, %.1f MiB each", chosen, per_row / 2**20)
    return chosen
