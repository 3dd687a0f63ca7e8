"""What a cache did so far."""

from __future__ import annotations

from dataclasses import dataclass

from spfde.freezing.cache.budget import show


@dataclass(frozen=True)
class CacheStats:
    """Counts of one cache, over all stores that it had; the last three are of the present store.

    hits, misses: samples that were asked for and were there, or not. carried: misses that the store before had.
    evicted: left to make room. rejected: damaged in files, or outside of the storage type's range. held: samples there
    now. capacity: samples that there is room for. bytes: taken by those held, here and in the store before.
    """

    hits: int = 0
    misses: int = 0
    carried: int = 0
    evicted: int = 0
    rejected: int = 0
    held: int = 0
    capacity: int = 0
    bytes: int = 0

    @property
    def rate(self) -> float:
        """Share of what was asked for that was there, in [0, 1]; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)

    def __str__(self) -> str:
        asked = self.hits + self.misses
        text = f"{self.rate:.1%} of {asked:,} found, {self.held:,} samples held in {show(self.bytes)}"
        counts = ((self.carried, "carried over"), (self.evicted, "evicted"), (self.rejected, "rejected"))
        extra = [f"{n:,} {what}" for n, what in counts if n]
        return ", ".join([text, *extra])
