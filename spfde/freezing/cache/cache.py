"""The activation cache: what the frozen front of a network returns, by sample."""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spfde._names import unknown
from spfde.freezing.cache import budget as budgets
from spfde.freezing.cache import directory, opening
from spfde.freezing.cache.files import OLDER
from spfde.freezing.cache.keys import check_indices, keys_of
from spfde.freezing.cache.row import STORED, Row
from spfde.freezing.cache.stats import CacheStats
from spfde.freezing.cache.store import Store, cost


class ActivationCache:
    """A store of one activation for each sample (and each variant of it), in memory or in files.

    It knows nothing of models: `open` starts the store of a key, which has to change with all that activations depend
    on. Samples are added as they are written while there is room. Then those leave that a sieve has let go (`keep`);
    when none of these is left, newcomers find no room: samples that are read once an epoch are equally useful, and to
    replace them in any order would only turn reads into misses.

    What was held under another key may still be of use, to what computes the new activations from it: `open` keeps that
    store as `older` until each of its samples was written anew, or until its room is needed.

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
        self.reason = "nothing was opened yet"
        self._store: Store | None = None
        self._older: Store | None = None
        self._waiting: set[int] = set()  # keys that only the older store has
        self._asked = 0  # samples since the store was opened
        self._present: np.ndarray | None = None  # what a sieve has kept
        self._hits = self._misses = self._carried = self._evicted = self._rejected = 0
        self._release: weakref.finalize | None = None
        self._claim()

    def open(
        self,
        key: str,
        samples: int,
        shape: Sequence[int],
        dtype: torch.dtype,
        channels_last: bool = False,
        older: Collection[str] = (),
    ) -> str:
        """Starts the store of a key, or goes on with that in the files; one of another key is gone. Returns `reason`.

        Args:
            key: names all that the activations depend on but the sample: the frozen layers and their weights.
            samples: indices are in [0, samples).
            shape: of a sample's activation.
            dtype: of the activations: float32, bfloat16 or float16.
            channels_last: activations [n, c, h, w] are kept, and read, in this memory format.
            older: keys of other activations that these can be computed from. The store of one of them stays, to be
                read as `older`; of two the one that holds more.

        Raises:
            TypeError: there is no storage type for `dtype`.
            ValueError: another argument is out of its range.
        """
        row = Row(tuple(shape), dtype, self.dtype, channels_last)
        if not isinstance(samples, int) or isinstance(samples, bool) or not 0 < samples <= (2**63 - 2) // self.variants:
            raise ValueError(f"expected samples in [1, 2**63 / variants), got {samples!r}, try len(train_set)")
        here = self._store
        if here is not None and (key, samples, row) == (here.key, here.samples, here.row):
            return self.reason
        self._claim()
        self._set_aside(key, samples, set(older))
        keys = samples * self.variants
        if self.path is None:
            rows, self.reason = opening.in_memory(row, keys, self.budget)
        else:
            identity = {"key": key, "samples": samples, "variants": self.variants}
            rows, self.reason = opening.on_disk(self.path, identity, row, keys, self.budget)
        self._store, self._asked = Store(key, samples, self.variants, row, rows), 0
        if self._older is not None:
            self._waiting = self._older.slots.keys() - self._store.slots.keys()
            if isinstance(self.budget, int):  # "auto" goes by what is free, which the older one has made less
                self._store.slots.limit = min(
                    self._store.slots.capacity, max(0, self.budget - self._older.taken) // cost(row)
                )
        if self._present is not None:
            self._store.keep(self._present)
        return self.reason

    @property
    def key(self) -> str | None:
        """That of the open store."""
        return None if self._store is None else self._store.key

    @property
    def older(self) -> str | None:
        """The key of the older store that is held beside the open one."""
        return None if self._older is None else self._older.key

    def lookup(self, indices: Tensor, variant: Tensor | None = None) -> Tensor:
        """Which samples are there: bool [n]; they are counted as hits and misses.

        Those that files have damaged are not there, and are counted as rejected.

        Raises:
            TypeError: `indices` [n] or `variant` [n] are no int64.
            ValueError: they are out of range, or there is no variant where the cache has several.
        """
        there = self.holds(indices, variant)
        hits = int(there.sum())
        self._hits, self._misses = self._hits + hits, self._misses + len(there) - hits
        self._asked += len(there)
        return there

    def holds(self, indices: Tensor, variant: Tensor | None = None) -> Tensor:
        """`lookup` without counting."""
        return self._found(self._store, indices, variant)

    def holds_older(self, indices: Tensor, variant: Tensor | None = None) -> Tensor:
        """Which samples the older store has: bool [n].

        Raises:
            TypeError, ValueError: as `lookup`.
        """
        return self._found(self._older, indices, variant)

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
        return _read(self._store, indices, variant, self.variants, out)

    def read_older(self, indices: Tensor, variant: Tensor | None = None) -> Tensor:
        """The activations of samples that the older store has. They are counted as carried over.

        Raises:
            TypeError, ValueError: as `read`.
        """
        rows = _read(self._older, indices, variant, self.variants, None)
        self._carried += len(rows)
        return rows

    def write(self, indices: Tensor, activations: Tensor, variant: Tensor | None = None) -> Tensor:
        """Takes samples in, in place of what was held of them, as far as there is room.

        Returns:
            The activations as they will be read, whether or not they found room, so that a training does not depend on
            it; on their device.

        Raises:
            TypeError: `indices` or `variant` are no int64, or the activations of another type than `open` was told.
            ValueError: the store is not open, an index is out of range, or the shape is another one.
        """
        store = self._store
        if store is None:
            raise ValueError("expected an open store, got none, try cache.open(key, samples, shape, dtype)")
        keys, row = store.keys(indices, variant), store.row
        if activations.dtype != row.dtype:
            raise TypeError(f"expected activations of type {row.dtype}, got {activations.dtype}, try cache.open again")
        if activations.shape != (len(keys), *row.shape):
            raise ValueError(
                f"expected activations {[len(keys), *row.shape]}, got {list(activations.shape)}, try one for each index"
            )
        if not keys:
            return activations
        result, places, codes, scales = store.encode(keys, activations)
        self._put(store, places, codes, scales)
        return result

    def keep(self, indices: Tensor) -> None:
        """Lets all samples but these leave when room is needed: a sieve's active ones, at the start of an epoch.

        The others stay while there is room, for a sieve brings samples back.

        Raises:
            TypeError: `indices` are no int64 [n].
        """
        check_indices("indices", indices)
        self._present = np.unique(indices.cpu().numpy())
        if self._store is not None:
            self._store.keep(self._present)

    def drop_older(self) -> None:
        """Gives the room of the older store to the open one."""
        if self._older is None:
            return
        self._close(self._older)
        self._older, self._waiting = None, set()
        if self.path is not None:
            opening.discard_older(self.path)
        if self._store is not None:
            self._store.slots.limit = self._store.slots.capacity

    def drop(self) -> None:
        """Forgets everything and gives memory and files back: after an unfreeze, or any change of what was frozen."""
        self._close_all()
        if self.path is not None:
            self._claim()
            opening.erase(self.path)
        self.reason = "dropped"

    def close(self) -> None:
        """Gives memory and the directory back; what is in the files stays for the next cache there, or `open`."""
        self._close_all()
        if self._release is not None:
            self._release()

    @property
    def stats(self) -> CacheStats:
        """What the cache did, over all stores that it had, and what it holds now."""
        stores = [store for store in (self._store, self._older) if store is not None]
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            carried=self._carried,
            evicted=self._evicted + sum(store.slots.evicted for store in stores),
            rejected=self._rejected + sum(store.rejected for store in stores),
            held=0 if self._store is None else len(self._store),
            capacity=0 if self._store is None else self._store.slots.capacity,
            bytes=sum(store.bytes for store in stores),
        )

    def _claim(self) -> None:
        """Takes the directory, unless it has it."""
        if self.path is not None and (self._release is None or not self._release.alive):
            self._release = weakref.finalize(self, directory.release, self.path, directory.claim(self.path))

    def _set_aside(self, key: str, samples: int, older: Collection[str]) -> None:
        """Leaves the store of one of the keys `older` as the older one, and no other."""
        here, there = self._store, self._older
        if self.path is not None and here is None and there is None:  # of an earlier process
            found = (opening.in_files(p, older, samples, self.variants) for p in (self.path, self.path / OLDER))
            here, there = found
        self._store = self._older = None
        useful = [s for s in (here, there) if s is not None and s.key in older and s.samples == samples and len(s)]
        kept = max(useful, key=len, default=None)
        for store in (here, there):
            if store is not None and store is not kept:
                self._close(store)
        if self.path is not None and kept is None:
            opening.discard_older(self.path)
        elif self.path is not None and kept is here:
            opening.set_aside(self.path)
        self._older, self._waiting = kept, set()

    def _put(self, store: Store, places: dict[int, int], codes: Tensor, scales: Tensor | None) -> None:
        """Writes rows of a batch, by key, as far as there is room."""
        if not places:
            return
        try:
            store.put(places, codes, scales)
            if self._older is not None and self._asked >= store.samples and -1 in store.slots.find(places):
                self.drop_older()  # it had an epoch
                store.put(places, codes, scales)
        except OSError as error:
            if error.errno not in opening.FULL:
                raise
            store.slots.close()
            self.reason = f"{error.strerror} after {len(store):,} samples in {self.path}"
        if self._older is not None:
            self._waiting.difference_update(key for key in places if store.slots.find([key])[0] >= 0)
            if not self._waiting:
                self.drop_older()

    def _found(self, store: Store | None, indices: Tensor, variant: Tensor | None) -> Tensor:
        """Which samples a store has: bool [n]."""
        if store is None:
            return torch.zeros(len(keys_of(indices, variant, None, self.variants)), dtype=torch.bool)
        before = store.rejected
        there = store.lookup(indices, variant)
        if store.rejected > before:
            total = self._rejected + store.rejected
            self.reason = f"{total:,} samples were damaged in {self.path}, and are computed anew"
        return there

    def _close(self, store: Store) -> None:
        store.close()
        self._evicted += store.slots.evicted
        self._rejected += store.rejected

    def _close_all(self) -> None:
        for store in (self._store, self._older):
            if store is not None:
                self._close(store)
        self._store, self._older, self._waiting = None, None, set()


def _read(store: Store | None, indices: Tensor, variant: Tensor | None, variants: int, out: Tensor | None) -> Tensor:
    keys = keys_of(indices, variant, None if store is None else store.samples, variants)
    slots = [-1] * len(keys) if store is None else store.find(keys)
    if store is None or -1 in slots:
        raise ValueError(
            f"expected samples that are held, got {slots.count(-1)} others in {len(slots)}, try cache.lookup first"
        )
    return store.read(slots, out)
