"""The activation cache: what the frozen front of a network returns, by sample."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spfde._names import unknown
from spfde.freezing.cache import budget as budgets
from spfde.freezing.cache import directory, files
from spfde.freezing.cache.files import Files
from spfde.freezing.cache.keys import check_indices, keys_of
from spfde.freezing.cache.memory import Memory
from spfde.freezing.cache.opening import FULL, INDEX, in_memory, on_disk
from spfde.freezing.cache.row import STORED, Row
from spfde.freezing.cache.slots import Slots
from spfde.freezing.cache.stats import CacheStats


class ActivationCache:
    """A store of one activation for each sample (and each variant of it), in memory or in files.

    It knows nothing of models: `open` starts the store of a key, which has to change with all that activations depend
    on. Samples are added as they are written while there is room. Then those leave that a sieve has let go (`keep`);
    when none of these is left, newcomers find no room: samples that are read once an epoch are equally useful, and to
    replace them in any order would only turn reads into misses.

    Args:
        path: directory of the files, None keeps all in memory. One cache at a time uses it: give each rank its own.
        budget: bytes to take at most; "auto" is half of what is free when a store begins. `reason` says what that was.
        dtype: how activations are kept: "float32", "bfloat16", "float16", or "int8" with the range of each channel of
            each sample. Those that are no wider are kept as they are, but for "int8".
        variants: inputs that each sample may have, as of `spfde.data.CropFlip(variants=)`.

    Raises:
        ValueError: an argument is out of its range, or the directory is no cache's or in use.

    Source: the lever of "Rethinking the Potential of Layer Freezing" (arXiv 2508.15033); Egeria (EuroSys 2023) and
    AutoFreeze (2021) cache likewise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        budget: int | str = "auto",
        dtype: str = "float32",
        variants: int = 1,
    ) -> None:
        budgets.check(budget)
        if dtype not in STORED:
            raise unknown("dtype", dtype, STORED)
        if not isinstance(variants, int) or isinstance(variants, bool) or variants < 1:
            raise ValueError(f"expected variants to be an integer >= 1, got {variants!r}, try 1")
        self.path = None if path is None else Path(path).absolute()
        self.budget, self.dtype, self.variants = budget, dtype, variants
        self.key: str | None = None
        self.reason = "nothing was opened yet"
        self._samples = 0
        self._row: Row | None = None
        self._rows: Memory | Files | None = None
        self._slots = Slots(0)
        self._present: np.ndarray | None = None  # what a sieve has kept
        self._scratch: Tensor | None = None
        self._hits = self._misses = self._evicted = self._rejected = 0
        self._release: weakref.finalize | None = None
        self._claim()

    def open(
        self, key: str, samples: int, shape: Sequence[int], dtype: torch.dtype, channels_last: bool = False
    ) -> str:
        """Starts the store of a key, or goes on with that in the files; one of another key is gone. Returns `reason`.

        Args:
            key: names all that the activations depend on but the sample: the frozen layers and their weights.
            samples: indices are in [0, samples).
            shape: of a sample's activation.
            dtype: of the activations: float32, bfloat16 or float16.
            channels_last: activations [n, c, h, w] are kept, and read, in this memory format.

        Raises:
            TypeError: there is no storage type for `dtype`.
            ValueError: another argument is out of its range.
        """
        row = Row(tuple(shape), dtype, self.dtype, channels_last)
        if not isinstance(samples, int) or isinstance(samples, bool) or not 0 < samples <= (2**63 - 2) // self.variants:
            raise ValueError(f"expected samples in [1, 2**63 / variants), got {samples!r}, try len(train_set)")
        if (key, samples, row) == (self.key, self._samples, self._row):
            return self.reason
        self._close()
        if self.path is None:
            self._rows, self.reason = in_memory(row, samples * self.variants, self.budget)
        else:
            self._claim()
            identity = {"key": key, "samples": samples, "variants": self.variants}
            self._rows, self.reason = on_disk(self.path, identity, row, samples * self.variants, self.budget)
        self.key, self._samples, self._row = key, samples, row
        self._slots = Slots.of(self._rows.holders, samples * self.variants)
        if self._present is not None:
            self._slots.keep(self._present, self.variants)
        return self.reason

    def lookup(self, indices: Tensor, variant: Tensor | None = None) -> Tensor:
        """Which samples are there: bool [n]. Those that files have damaged are not, and are counted as rejected.

        Raises:
            TypeError: `indices` [n] or `variant` [n] are no int64.
            ValueError: they are out of range, or there is no variant where the cache has several.
        """
        found = self._find(self._keys(indices, variant))
        there = torch.tensor(found, dtype=torch.int64) >= 0
        hits = int(there.sum())
        self._hits, self._misses = self._hits + hits, self._misses + len(found) - hits
        return there

    def read(self, indices: Tensor, variant: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The activations [n, *shape] of samples that are there, on the CPU, in the memory format of the store.

        Args:
            indices: int64 [n].
            variant: int64 [n], where the cache has several.
            out: takes them, [n, *shape] in the type and memory format of the store: a pinned buffer, or one that is
                used again once nothing needs what it held.

        Raises:
            TypeError: `indices` or `variant` are no int64.
            ValueError: a sample is not there, or `out` is another shape, type or memory format.
        """
        slots, row = self._find(self._keys(indices, variant)), self._row
        if row is None or -1 in slots:
            raise ValueError(
                f"expected samples that are held, got {slots.count(-1)} others in {len(slots)}, try cache.lookup first"
            )
        rows = torch.empty(len(slots), *row.physical, dtype=row.dtype) if out is None else row.view_of(out, len(slots))
        if slots:
            where = torch.tensor(slots)
            codes = rows if row.exact else self._buffer(len(slots))
            torch.index_select(self._rows.codes, 0, where, out=codes)
            if not row.exact:
                row.decode(codes, None if self._rows.scales is None else self._rows.scales[where], rows)
        return row.unpack(rows) if out is None else out

    def write(self, indices: Tensor, activations: Tensor, variant: Tensor | None = None) -> Tensor:
        """Takes samples in, in place of what was held of them, as far as there is room.

        Returns:
            The activations as they will be read, whether or not they found room, so that a training does not depend on
            it; on their device.

        Raises:
            TypeError: `indices` or `variant` are no int64, or the activations of another type than `open` was told.
            ValueError: the store is not open, an index is out of range, or the shape is another one.
        """
        if self._row is None:
            raise ValueError("expected an open store, got none, try cache.open(key, samples, shape, dtype)")
        keys, row = self._keys(indices, variant), self._row
        if activations.dtype != row.dtype:
            raise TypeError(f"expected activations of type {row.dtype}, got {activations.dtype}, try cache.open again")
        if activations.shape != (len(keys), *row.shape):
            raise ValueError(
                f"expected activations {[len(keys), *row.shape]}, got {list(activations.shape)}, try one for each index"
            )
        if not keys:
            return activations
        codes, scales = row.encode(row.pack(activations.detach()))
        last = {key: place for place, key in enumerate(keys)}
        if row.exact:
            self._put(last, codes, scales)
            return activations
        result = row.decode(codes, scales, torch.empty(len(keys), *row.physical, dtype=row.dtype))
        result = row.unpack(result).to(activations.device)
        finite = result.flatten(1).isfinite().all(1)
        if not finite.all():  # too large for float16, or not finite before: int8 has no range then
            result = torch.where(finite.view(-1, *[1] * len(row.shape)), result, activations)
            fits = finite.tolist()
            unfit = [key for key, place in last.items() if not fits[place]]
            self._forget([slot for slot in self._slots.find(unfit) if slot >= 0])
            self._rejected += len(unfit)
            last = {key: place for key, place in last.items() if fits[place]}
        self._put(last, codes, scales)
        return result

    def keep(self, indices: Tensor) -> None:
        """Lets all samples but these leave when room is needed: a sieve's active ones, at the start of an epoch.

        The others stay while there is room, for a sieve brings samples back.

        Raises:
            TypeError: `indices` are no int64 [n].
        """
        check_indices("indices", indices)
        self._present = np.unique(indices.cpu().numpy())
        self._slots.keep(self._present, self.variants)

    def drop(self) -> None:
        """Forgets everything and gives memory and files back: after an unfreeze, or any change of what was frozen."""
        self._close()
        if self.path is not None:
            self._claim()
            files.erase(self.path)
        self.reason = "dropped"

    def close(self) -> None:
        """Gives memory and the directory back; what is in the files stays for the next cache there, or `open`."""
        self._close()
        if self._release is not None:
            self._release()

    @property
    def stats(self) -> CacheStats:
        """What the cache did, over all stores that it had, and what it holds now."""
        each = 0 if self._row is None else self._row.bytes + INDEX
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            evicted=self._evicted + self._slots.evicted,
            rejected=self._rejected,
            held=len(self._slots),
            capacity=self._slots.capacity,
            bytes=len(self._slots) * each,
        )

    def _claim(self) -> None:
        """Takes the directory, unless it has it."""
        if self.path is not None and (self._release is None or not self._release.alive):
            self._release = weakref.finalize(self, directory.release, self.path, directory.claim(self.path))

    def _put(self, places: dict[int, int], codes: Tensor, scales: Tensor | None) -> None:
        """Writes rows of a batch, by key, as far as there is room."""
        slots = self._slots.give(places)
        if not slots:
            return
        chosen = torch.tensor([places[key] for key in slots])
        if chosen.tolist() != list(range(len(codes))):
            codes, scales = codes[chosen], None if scales is None else scales[chosen]
        try:
            self._rows.put(list(slots.values()), list(slots), codes, scales)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._slots.release(slots.values())
            self._slots.close()
            self.reason = f"{error.strerror} after {len(self._slots):,} samples in {self.path}"

    def _find(self, keys: Sequence[int]) -> list[int]:
        """The slot of each key, -1 where there is none, or a damaged one."""
        slots = self._slots.find(keys)
        damaged = [] if self._rows is None else self._rows.damaged([slot for slot in slots if slot >= 0])
        if damaged:
            self._forget(damaged)
            self._rejected += len(damaged)
            self.reason = f"{self._rejected:,} samples were damaged in {self.path}, and are computed anew"
            slots = self._slots.find(keys)
        return slots

    def _forget(self, slots: Sequence[int]) -> None:
        if slots:
            self._rows.forget(slots)
            self._slots.release(slots)

    def _keys(self, indices: Tensor, variant: Tensor | None) -> list[int]:
        return keys_of(indices, variant, self._samples or None, self.variants)

    def _buffer(self, count: int) -> Tensor:
        """Rows in the storage type, whose memory the next read takes again."""
        if self._scratch is None or len(self._scratch) < count:
            self._scratch = torch.empty(count, *self._row.physical, dtype=self._row.stored)
        return self._scratch[:count]

    def _close(self) -> None:
        if self._rows is not None:
            self._rows.close()
        self._evicted += self._slots.evicted
        self.key, self._samples, self._row, self._rows, self._scratch = None, 0, None, None, None
        self._slots = Slots(0)
