"""Keys and values of rows that come and go: one cache for all of them, each row in a slot of it.

Caches of transformers grow by copying at every token, or are of one length for all rows; hence this one, behind the
interface that its models call. Who decodes says at which slots and positions the next forward pass is (`Place`).

L keys, H heads, D head size.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

# Room is made in steps of this many keys, so that the cache grows now and then and not at every token.
LENGTH_STEP = 256


class Place:
    """Where the next forward pass writes and reads: slots `first` to `first + count`, at one position or at each its own."""

    first = count = start = keys = 0
    capacity = (0, 0)  # rows, and keys of each, that there is room for
    slots_B: torch.Tensor | None = None
    positions_B: torch.Tensor | None = None


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values (slots, H, L, D), grown as they are needed."""

    def __init__(self, place: Place) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place = place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (
            self._room(old, fresh) for old, fresh in ((self.keys, key_states), (self.values, value_states))
        )
        self.is_initialized = True

    def _room(self, old: torch.Tensor | None, fresh: torch.Tensor) -> torch.Tensor:
        # Zeros, for what a mask hides still takes part as 0 times itself.
        rows, length = self.place.capacity
        room = fresh.new_zeros(rows, fresh.shape[1], length, fresh.shape[3])
        if old is not None:
            rows, length = min(old.shape[0], rows), min(old.shape[2], length)
            room[:rows, :, :length] = old[:rows, :, :length]
        return room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        place = self.place
        if self.keys is None or any(has < needed for has, needed in zip(self.size, place.capacity, strict=True)):
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        slots = slice(place.first, place.first + place.count)
        for room, fresh in ((self.keys, key_states), (self.values, value_states)):
            if place.positions_B is None:
                room[slots, :, place.start : place.start + fresh.shape[2]] = fresh
            else:
                room[place.slots_B, :, place.positions_B] = fresh[:, :, 0]
        return self.keys[slots, :, : place.keys], self.values[slots, :, : place.keys]

    @property
    def rooms(self) -> list[torch.Tensor]:
        return [room for room in (self.keys, self.values) if room is not None]

    @property
    def size(self) -> tuple[int, int]:
        """Rows, and keys of each, that there is room for."""
        return (0, 0) if self.keys is None else (self.keys.shape[0], self.keys.shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.place.keys, 0

    def get_seq_length(self) -> int:
        return self.place.start

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """All layers' slots, made as the model's layers first ask for them."""

    layers: list[_SlotLayer]  # type: ignore[assignment]

    def __init__(self) -> None:
        self.place = Place()
        super().__init__(layer_class_to_replicate=lambda: _SlotLayer(self.place))  # type: ignore[arg-type]

    def has_room(self, rows: int, length: int) -> bool:
        return rows <= self.place.capacity[0] and length <= self.place.capacity[1]

    def make_room(self, rows: int, length: int, most: int, *, max_rows: int, max_tokens: float) -> None:
        """Room for so many keys of each of so many rows, which will come to `most` keys at most.

        Where it must grow it doubles, for that copies what is there; what was enough is kept for the next rows. Rows times
        keys stay within `max_tokens`, as `rows` times `most` do.
        """
        if self.has_room(rows, length):
            return
        has_rows, has_length = self.place.capacity
        if rows > has_rows:
            has_rows = min(max(rows, 2 * has_rows, max_rows // 4), max_rows)
        if length > has_length:
            has_length = min(max(in_steps(length), 2 * has_length), most)
        if has_rows * has_length > max_tokens:
            has_rows, has_length = max(rows, min(int(max_tokens // most), max_rows)), most
        self.place.capacity = has_rows, has_length

    def empty(self) -> None:
        self.layers.clear()
        self.place.capacity = (0, 0)

    def agree(self) -> None:
        """Count on what all layers have room for, after a pass that failed half-way: some may have grown, others not."""
        rows, lengths = zip(*(layer.size for layer in self.layers), strict=True)
        self.place.capacity = min(rows), min(lengths)

    def copy(self, source: int, target: int, length: int) -> None:
        """A slot's first keys and values into another slot."""
        for layer in self.layers:
            for room in layer.rooms:
                room[target, :, :length] = room[source, :, :length]

    def wipe(self, slot: int) -> None:
        """A mask hides what a row left behind, but hides no nan: 0 times that is nan for whoever comes next."""
        for layer in self.layers:
            for room in layer.rooms:
                room[slot : slot + 1].zero_()  # which it may have no room for, where a pass failed half-way

    @property
    def bytes_per_token(self) -> int:
        """What one token of a row takes, which is known once a row has run."""
        return sum(room[0, :, 0].nbytes for layer in self.layers for room in layer.rooms)


def in_steps(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
