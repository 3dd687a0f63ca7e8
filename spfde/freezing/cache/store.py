"""One store of a cache: the activations of one key, by sample, with what finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spfde.freezing.cache.files import Files
from spfde.freezing.cache.keys import keys_of
from spfde.freezing.cache.memory import Memory
from spfde.freezing.cache.row import Row
from spfde.freezing.cache.slots import Slots

INDEX = 256  # bytes of memory, or less, that finding a row takes beside the row itself


@dataclass(eq=False)
class Store:
    """The activations of the front `key`, of `samples` samples with `variants` inputs each.

    rejected: rows that were damaged, or that the storage type could not hold.
    """

    key: str
    samples: int
    variants: int
    row: Row
    rows: Memory | Files
    rejected: int = 0
    slots: Slots = field(init=False)

    def __post_init__(self) -> None:
        self.slots = Slots.of(self.rows.holders, self.samples * self.variants)
        self._scratch: Tensor | None = None

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def bytes(self) -> int:
        """Taken by the samples that are held."""
        return len(self) * cost(self.row)

    @property
    def taken(self) -> int:
        """Bytes that are given back only when the store is closed."""
        return self.slots.used * cost(self.row)

    def keys(self, indices: Tensor, variant: Tensor | None) -> list[int]:
        """The key of each of `indices` [n] and `variant` [n]; TypeError or ValueError where there is none."""
        return keys_of(indices, variant, self.samples, self.variants)

    def find(self, keys: Sequence[int]) -> list[int]:
        """The slot of each key, -1 where there is none, or a damaged one."""
        slots = self.slots.find(keys)
        damaged = self.rows.damaged([slot for slot in slots if slot >= 0])
        if not damaged:
            return slots
        self.forget(damaged)
        self.rejected += len(damaged)
        return self.slots.find(keys)

    def lookup(self, indices: Tensor, variant: Tensor | None = None) -> Tensor:
        """Which samples are there: bool [n]."""
        return torch.tensor(self.find(self.keys(indices, variant)), dtype=torch.int64) >= 0

    def read(self, slots: Sequence[int], out: Tensor | None = None) -> Tensor:
        """The activations [n, *shape] in slots; `out` takes them."""
        row = self.row
        rows = torch.empty(len(slots), *row.physical, dtype=row.dtype) if out is None else row.view_of(out, len(slots))
        if slots:
            where = torch.tensor(slots)
            codes = rows if row.exact else self._buffer(len(slots))
            torch.index_select(self.rows.codes, 0, where, out=codes)
            if not row.exact:
                row.decode(codes, None if self.rows.scales is None else self.rows.scales[where], rows)
        return row.unpack(rows) if out is None else out

    def encode(self, keys: Sequence[int], activations: Tensor) -> tuple[Tensor, dict[int, int], Tensor, Tensor | None]:
        """Activations [n, *shape] as they will be read, and what `put` takes of them; those without a form are gone."""
        row, last = self.row, {key: place for place, key in enumerate(keys)}
        codes, scales = row.encode(row.pack(activations.detach()))
        if row.exact:
            return activations, last, codes, scales
        result = row.decode(codes, scales, torch.empty(len(keys), *row.physical, dtype=row.dtype))
        result = row.unpack(result).to(activations.device)
        finite = result.flatten(1).isfinite().all(1)
        if not finite.all():  # too large for float16, or not finite before: int8 has no range then
            result = torch.where(finite.view(-1, *[1] * len(row.shape)), result, activations)
            fits = finite.tolist()
            unfit = [key for key, place in last.items() if not fits[place]]
            self.forget([slot for slot in self.slots.find(unfit) if slot >= 0])
            self.rejected += len(unfit)
            last = {key: place for key, place in last.items() if fits[place]}
        return result, last, codes, scales

    def put(self, places: Mapping[int, int], codes: Tensor, scales: Tensor | None) -> None:
        """Writes rows of a batch, by key, as far as there is room.

        Raises:
            OSError: the files could not be written; the store has none of these then.
        """
        slots = self.slots.give(places)
        if not slots:
            return
        chosen = torch.tensor([places[key] for key in slots])
        if chosen.tolist() != list(range(len(codes))):
            codes, scales = codes[chosen], None if scales is None else scales[chosen]
        try:
            self.rows.put(list(slots.values()), list(slots), codes, scales)
        except OSError:
            self.slots.release(slots.values())
            raise

    def forget(self, slots: Sequence[int]) -> None:
        """Empties slots."""
        if slots:
            self.rows.forget(slots)
            self.slots.release(slots)

    def keep(self, present: np.ndarray) -> None:
        """Lets all samples but those `present` leave when room is needed."""
        self.slots.keep(present, self.variants)

    def close(self) -> None:
        """Gives memory and files back; what is in the files stays."""
        self.rows.close()

    def _buffer(self, count: int) -> Tensor:
        """Rows in the storage type, whose memory the next read takes again."""
        if self._scratch is None or len(self._scratch) < count:
            self._scratch = torch.empty(count, *self.row.physical, dtype=self.row.stored)
        return self._scratch[:count]


def cost(row: Row) -> int:
    """Bytes that a sample takes."""
    return row.bytes + INDEX
