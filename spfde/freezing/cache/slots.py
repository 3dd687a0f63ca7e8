"""Which slot of a store holds which sample, and who leaves when there is no room."""

from __future__ import annotations

from collections.abc import Collection, Iterable, KeysView

import numpy as np


class Slots:
    """Finds the slots of keys, integers of any size, among `capacity` of them.

    evicted: keys that left to make room. limit: slots that may be taken as long as others have the room of the rest.
    used: slots from here on were never taken.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = self.limit = capacity
        self.evicted = self.used = 0
        self._slots: dict[int, int] = {}
        self._keys: dict[int, int] = {}
        self._free: list[int] = []
        self._leaving: dict[int, None] = {}  # slots of keys that `keep` left out

    def __len__(self) -> int:
        return len(self._slots)

    @classmethod
    def of(cls, holders: np.ndarray, keys: int) -> Slots:
        """Takes over a store: holders [capacity] are keys plus one, 0 for none; what is not in [0, keys) is free."""
        slots = cls(len(holders))
        slots.used = int(holders.nonzero()[0][-1]) + 1 if holders.any() else 0
        for slot, holder in enumerate(holders[: slots.used].tolist()):
            if 0 < holder <= keys and holder - 1 not in slots._slots:
                slots._slots[holder - 1], slots._keys[slot] = slot, holder - 1
            else:
                slots._free.append(slot)
        return slots

    def keys(self) -> KeysView[int]:
        """Those that have a slot."""
        return self._slots.keys()

    def find(self, keys: Iterable[int]) -> list[int]:
        """The slot of each key, -1 for none."""
        return [self._slots.get(key, -1) for key in keys]

    def give(self, keys: Collection[int]) -> dict[int, int]:
        """A slot for each key, its own if it has one; keys that find no room are left out."""
        given = {}
        for key in keys:
            if key in self._slots:
                self._leaving.pop(self._slots[key], None)
                given[key] = self._slots[key]
        for key in keys:
            if key not in given and (slot := self._room()) is not None:
                self._slots[key], self._keys[slot], given[key] = slot, key, slot
        return given

    def release(self, slots: Iterable[int]) -> None:
        """Frees slots."""
        for slot in slots:
            del self._slots[self._keys.pop(slot)]
            self._leaving.pop(slot, None)
            self._free.append(slot)

    def keep(self, present: np.ndarray, variants: int) -> None:
        """Lets all samples (keys // variants) but those `present` leave as soon as room is needed."""
        keys = np.fromiter(self._slots.keys(), np.int64, len(self._slots))
        away = keys[~np.isin(keys // variants, present)]
        self._leaving = {self._slots[key]: None for key in away.tolist()}

    def close(self) -> None:
        """Takes no more keys than there are."""
        self.limit = self.capacity = len(self)
        self._free = []

    def _room(self) -> int | None:
        if self._free:
            return self._free.pop()
        if self.used < self.limit:
            self.used += 1
            return self.used - 1
        if not self._leaving:
            return None
        slot, _ = self._leaving.popitem()
        del self._slots[self._keys[slot]]
        self.evicted += 1
        return slot
