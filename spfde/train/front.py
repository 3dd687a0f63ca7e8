"""The frozen front in a run: one inference call, and what it returns kept by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from spfde.data import CropFlip
from spfde.freezing import ActivationCache, CacheStats, FreezeBlock, Prefix
from spfde.levers import Decision
from spfde.train import run_dir
from spfde.train.recipe import Recipe


class FrozenFront:
    """What a session makes of a recipe's `prefix` and `cache`; nothing before the first freeze."""

    def __init__(self, recipe: Recipe, samples: int) -> None:
        self.recipe, self.samples = recipe, samples
        self.prefix: Prefix | None = None
        self._order: Tensor | None = None
        self._before = CacheStats()  # at the last call of `spent`
        self._forward = (("", ""), 0.0, 0.0)  # two boundaries, and the FLOPs of one sample's forward up to each

    @property
    def cache(self) -> ActivationCache | None:
        """The cache in use."""
        return None if self.prefix is None else self.prefix.cache

    def passing(
        self,
        model: nn.Module,
        blocks: Callable[[], Sequence[FreezeBlock]],
        augment: CropFlip,
        indices: Tensor,
        epoch: int,
    ) -> AbstractContextManager[Any]:
        """Inside of it the model takes samples `indices` of an epoch through its frozen front as the recipe says."""
        if not self.recipe.prefix:
            return nullcontext()
        if self.prefix is None:
            self.prefix = Prefix(model, blocks(), self._new_cache(augment), self.samples)
            if self.cache is not None and self._order is not None:
                self.cache.keep(self._order)
        if self.prefix.cache is None:
            return self.prefix()
        return self.prefix(indices, None if augment.inputs == 1 else augment.variant(indices, epoch))

    def start_epoch(self, order: Tensor) -> None:
        """Take note of the samples of an epoch: others leave the cache where it lacks room."""
        self._order = order
        if self.cache is not None:
            self.cache.keep(order)

    def report(self) -> list[Decision]:
        """Return what the cache did so far, with why it is as large as it is, or not used."""
        if self.cache is None:
            return []
        return [Decision("cache", str(self.cache.stats), self.prefix.reason or self.cache.reason)]

    def spent(self) -> dict[str, float]:
        """Return what the cache did since the last call, with the FLOPs that it spared; {} without a cache."""
        if self.cache is None:
            return {}
        before, self._before = self._before, self.cache.stats
        counts = {name: getattr(self._before, name) - getattr(before, name) for name in ("hits", "misses", "carried")}
        fronts = (self.prefix.frozen, self.prefix.shorter)
        names = tuple(front[-1].name if front else "" for front in fronts)
        if (counts["hits"] or counts["carried"]) and self._forward[0] != names:
            self._forward = (names, *(float(sum(block.forward for block in front)) for front in fronts))
        _, whole, shorter = self._forward
        return {**counts, "flops": counts["hits"] * whole + counts["carried"] * shorter}

    def told(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Return the record of an epoch in which `spent` added up to this."""
        return {} if self.cache is None else {**spent, "bytes": self.cache.stats.bytes}

    def forget(self) -> None:
        """Remove what the run directory has of the cache: the run is over."""
        if self.cache is not None and self.recipe.cache == "auto":
            self.cache.drop()
            self.close()
            run_dir.discard_cache(self.recipe.out)

    def close(self) -> None:
        """Give the cache's memory and directory back."""
        if self.cache is not None:
            self.cache.close()

    def _new_cache(self, augment: CropFlip) -> str | ActivationCache:
        recipe = self.recipe
        if recipe.cache == "off":
            return "off"
        # Not in memory where there is a run directory: a run that is resumed goes on with what was kept, to the bit.
        path = recipe.cache if recipe.cache != "auto" else recipe.out and run_dir.cache_path(recipe.out)
        budget = recipe.cache_budget or "auto"
        return ActivationCache(path, budget=budget, dtype=recipe.cache_dtype, variants=augment.inputs)
