"""`Prefix`: the frozen front of a model as one inference call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from spfde._modules import any_global_hook
from spfde.freezing.block import FreezeBlock
from spfde.freezing.cache import ActivationCache
from spfde.freezing.checks import check_blocks, check_whole
from spfde.freezing.prefix.cut import Forwards, replaced
from spfde.freezing.prefix.folded import CONVOLUTIONS
from spfde.freezing.prefix.front import Front, rewritten
from spfde.freezing.prefix.kinds import FoldedLayer
from spfde.freezing.prefix.linear import LINEARS
from spfde.freezing.prefix.recall import FromCache, Recall
from spfde.freezing.prefix.rewrite import Traces
from spfde.fusing.epilogue import hooked


class Prefix:
    """Runs the frozen front of a model without a graph, its convolutions folded with the norms behind them.

    The front is what is frozen without a gap from the first block on. Inside of `with prefix():` a frozen convolution,
    its norm, an addition and an activation are one call, on weights that the norm is multiplied into: copies, derived
    anew when something writes the originals. Parameters, buffers, `state_dict`, hooks and classes stay as they are, and
    outside of the block the model is untouched. A freeze or an unfreeze is seen at the next `with`.

    Outputs differ from those of the model itself by rounding alone. What cannot be folded runs as ever:
    `print(prefix)` says what and why.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        cache: where what the front returns is kept by sample, so that it runs once for each: "off", "auto" for memory,
            a directory, or an `ActivationCache`. It is used in `with prefix(indices):` where the model can be cut.
        samples: length of the training set, below which indices are.

    Raises:
        TypeError: `blocks` are not FreezeBlocks, or `cache` is none.
        ValueError: they are not those of `model` as it is now, or `samples` is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        cache: str | os.PathLike[str] | ActivationCache = "off",
        samples: int | None = None,
    ) -> None:
        check_blocks(blocks, model)
        self.cache = _cache(cache, samples)
        self.model, self.blocks, self.samples = model, tuple(blocks), samples
        self._traces = Traces()
        self._folded: dict[nn.Module, FoldedLayer] = {}
        self._front, self._seen = Front(), None
        self._recall: Recall | None = None
        self._active = False

    @property
    def frozen(self) -> tuple[FreezeBlock, ...]:
        """The blocks that are frozen now without a gap from the first one on."""
        count = next((i for i, block in enumerate(self.blocks) if not block.is_frozen), len(self.blocks))
        return self.blocks[:count]

    @property
    def boundary(self) -> str | None:
        """Name of the last block of the frozen front, None where nothing is frozen."""
        frozen = self.frozen
        return frozen[-1].name if frozen else None

    @property
    def shorter(self) -> tuple[FreezeBlock, ...]:
        """The front of before its last growth, where the cache starts for samples that it held then."""
        return () if self._recall is None else self._recall.shorter

    @property
    def reason(self) -> str:
        """Why the cache is not used for the front as it is now, "" where it is or there is none."""
        return "" if self._recall is None else self._recall.reason

    @contextmanager
    def __call__(self, indices: Tensor | None = None, variant: Tensor | None = None) -> Iterator[Prefix]:
        """Inside of it the model's front is one inference call, or what the cache holds of it.

        indices: int64 [n], the samples of the batch; without them the cache is not used. variant: int64 [n], which of
        its inputs each sample has, where the cache has several. Inputs must depend on both alone.
        """
        if self._active:
            raise RuntimeError("expected one `with prefix()` at a time, got one inside of another, try the outer alone")
        self.follow()
        forwards: Forwards = {} if any_global_hook() else self._front.forwards
        if self._recall is not None and indices is not None and not any_global_hook():
            forwards = {**forwards, self.model: FromCache(self._recall, forwards, indices, variant)}
        self._active = True
        try:
            with replaced(forwards):
                yield self
        finally:
            self._active = False

    def follow(self) -> None:
        """Takes note of what has frozen, thawed or been written since the last time."""
        frozen, modules = self.frozen, tuple(self.model.modules())
        seen = (len(frozen), tuple((m, m.training, hooked(m), vars(m).get("forward")) for m in modules))
        if seen != self._seen:
            self._front = self._rewritten()
            used = {step.folded.layer for chain in self._front.chains for step in chain.steps}
            self._folded = {layer: kept for layer, kept in self._folded.items() if layer in used}
            before, self._recall = self._recall, None
            if self.cache is not None and frozen:
                front = lambda whole: self._rewritten(whole)  # noqa: E731 (copies of the model take no prefix along)
                self._recall = Recall(self.model, frozen, self.cache, self.samples, front, before)
            elif self.cache is not None and self.cache.key is not None:
                self.cache.drop()  # thawed
            self._seen = seen
        for kept in self._folded.values():
            kept.refresh()

    def _rewritten(self, whole: Sequence[nn.Module] = ()) -> Front:
        """What stands in for the front as it is now, but for modules that have to be called."""
        members = {m for block in self.frozen for m in block.members}
        self._folded = {layer: kept for layer, kept in self._folded.items() if layer in members}
        return rewritten(self.model, members, whole, self._traces, self._folded)

    def __str__(self) -> str:
        """What is folded, and what is not and why."""
        if not self._active:
            self.follow()
        frozen = self.frozen
        if not frozen:
            return "nothing is frozen from the first block on: the model runs as ever"
        names = {module: name or "the model" for name, module in self.model.named_modules()}
        members = {m for block in frozen for m in block.members}
        counts = []
        for kinds, done in ((CONVOLUTIONS, "convolutions folded"), (LINEARS, "linear layers one with what follows")):
            own = sum(isinstance(m, kinds) for m in members)
            if own:
                counts.append(f"{sum(isinstance(layer, kinds) for layer in self._folded)} of {own} {done}")
        lines = [f"{len(frozen)} of {len(self.blocks)} blocks, up to {frozen[-1].name}: {', '.join(counts)}, "
                 f"in {len(self._front.chains)} calls"]  # fmt: skip
        for chain in self._front.chains:
            lines += [f"  {names[step.folded.layer]}  {step.text}" for step in chain.steps]
        lines += [f"  {names[module]} as ever: {why}" for module, why in self._front.reasons.items() if why]
        lines += [f"  no cache: {self.reason}"] if self.reason else []
        return "\n".join(lines)


def _cache(cache: Any, samples: int | None) -> ActivationCache | None:
    if not isinstance(cache, str | os.PathLike | ActivationCache):
        raise TypeError(
            f"expected cache as 'off', 'auto', a directory or an ActivationCache, got {cache!r}, try 'auto'"
        )
    if cache == "off":
        return None
    check_whole("samples", samples, 1)
    if isinstance(cache, ActivationCache):
        return cache
    return ActivationCache(None if cache == "auto" else cache)
