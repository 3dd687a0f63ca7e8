"""The frozen front in a run: one inference call, and what it returns kept by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from spfde.data import CropFlip
from spfde.freezing import ActivationCache, FreezeBlock, Prefix
from spfde.levers import Decision
from spfde.train.recipe import Recipe


class FrozenFront:
    """What a session makes of a recipe's `prefix` and `cache`; nothing before the first freeze."""

    def __init__(self, recipe: Recipe, samples: int) -> None:
        self.recipe, self.samples = recipe, samples
        self.prefix: Prefix | None = None

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
        if self.prefix.cache is None:
            return self.prefix()
        return self.prefix(indices, None if augment.inputs == 1 else augment.variant(indices, epoch))

    def start_epoch(self, order: Tensor) -> None:
        """Take note of the samples of an epoch: others leave the cache where it lacks room."""
        if self.cache is not None:
            self.cache.keep(order)

    def report(self) -> list[Decision]:
        """Return what the cache did so far, with why it is as large as it is, or not used."""
        if self.cache is None:
            return []
        return [Decision("cache", str(self.cache.stats), self.prefix.reason or self.cache.reason)]

    def close(self) -> None:
        """Give the cache's memory and directory back."""
        if self.cache is not None:
            self.cache.close()

    def _new_cache(self, augment: CropFlip) -> str | ActivationCache:
        kind = self.recipe.cache
        if kind == "off":
            return "off"
        path = None if kind == "auto" else kind
        return ActivationCache(path, dtype=self.recipe.cache_dtype, variants=augment.inputs)
