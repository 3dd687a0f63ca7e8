"""What the front returns for samples that the cache holds is read, for others it is computed and written."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import tensors
from spfde._version import __version__
from spfde.freezing.block import FreezeBlock
from spfde.freezing.cache import ActivationCache
from spfde.freezing.prefix.cut import FEW, Args, Cut, Forwards, NoCut, agree, call, count, find_cut, replaced, select
from spfde.freezing.prefix.front import Front
from spfde.nn import SparseLayer

ALIKE = 0.1  # relative difference to which files agree with what is computed: int8 stays far below, other data above
CLOSE = 1e-4  # to which what is carried over without rounding does: kernels may sum in another order


class Recall:
    """The use of a cache at one boundary of a model.

    A front that has grown starts where it ended before: what the cache still holds from then goes through the new
    blocks alone. So that this gives the same bits, no chain crosses the end of a block.

    blocks: the frozen front. samples: indices are below. front: what stands in for the model's forwards while the front
    runs, but for modules that have to be called. before: the use of the cache at the boundary before this one.
    shorter: the front that ended there. reason: why the cache is not used, "" where it is.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        cache: ActivationCache,
        samples: int,
        front: Callable[[Sequence[nn.Module]], Front],
        before: Recall | None = None,
    ) -> None:
        self.model, self.blocks, self.cache, self.samples = model, tuple(blocks), cache, samples
        self._front_but_for = front
        self._front = Front()
        self._whole = [block.modules[-1][1] for block in self.blocks]
        self._cut: Cut | None = None
        self._older: Cut | None = None  # where the front ended of which the cache has an older store
        self._cuts: dict[int, Cut] = {} if before is None else before._cuts  # by the number of blocks
        self._proven = False  # by samples that were carried over and computed as well
        self.shorter: tuple[FreezeBlock, ...] = ()
        self._stamp: tuple[Any, ...] | None = None
        self._keys: list[str] = []  # of the front of one block, of two, ...
        self.reason = ""
        self._inputs: dict[int, int] = {} if before is None else before._inputs  # checksums, by sample and variant

    def __call__(self, given: Args, indices: Tensor, variant: Tensor | None) -> Any:
        """What the model returns for the arguments `given`, those of the samples `indices`."""
        if self._cut is None and not self.reason:
            try:
                self._cut = find_cut(self.model, self.blocks, given)
                self._cuts[len(self.blocks)] = self._cut
                self._whole.append(self._cut.at)
                front = self._front_but_for(self._whole)
                self._front = front if agree(self._cut, self.model, given, front.forwards) else Front()
            except NoCut as problem:
                self.reason, self._front = str(problem), self._front_but_for(())
        if self._cut is None:
            with replaced(self._front.forwards):
                return call(self.model, given)
        return self._cut.rest(self.model, given, self._boundary(self._cut, given, indices, variant))

    def _boundary(self, cut: Cut, given: Args, indices: Tensor, variant: Tensor | None) -> Tensor:
        samples = count(given)
        if samples != len(indices):
            raise ValueError(
                f"expected an index for each of {samples} samples, got {len(indices)}, try the batch's own"
            )
        opened = self._opened()
        if not opened:
            self._open(cut, given, indices, variant, samples)
        there = self.cache.lookup(indices, variant)
        missing, made, read = (~there).nonzero().view(-1), None, None
        if len(missing):
            made = self._made(cut, given, missing, indices, variant, samples)
            made = self.cache.write(indices[missing], made, _of(variant, missing))
        if len(missing) < samples:
            held = there.nonzero().view(-1)
            self._check(given, held[:1], indices, variant, samples)
            read = self.cache.read(indices[held], _of(variant, held))
        self._remember(given, missing, indices, variant, samples)
        if made is None or read is None:
            boundary = made if read is None else read
            return boundary.to(_device(given))
        return _merged(samples, there, read, made)

    def _open(self, cut: Cut, given: Args, indices: Tensor, variant: Tensor | None, samples: int) -> None:
        """Opens the store of this front.

        What files of an earlier process hold has to agree with what it is now: a data set may be another one under the
        same weights.
        """
        made = self._computed(cut, given, torch.arange(samples)[:FEW], samples)
        last = made.dim() == 4 and made.is_contiguous(memory_format=torch.channels_last) and not made.is_contiguous()
        form = (self._keys[-1], self.samples, made.shape[1:], made.dtype, last)
        self.cache.open(*form, older=self._keys[:-1])
        held = self.cache.holds(indices, variant).nonzero().view(-1)[:FEW]
        if len(held):
            read = self.cache.read(indices[held], _of(variant, held))
            if not self._agree(read, cut, given, held, samples, ALIKE):
                self.cache.drop()
                self.cache.open(*form)
        self._older = self._older_cut(given) if self.cache.older is not None else None
        if self._older is None:
            self.cache.drop_older()
            self._inputs = {}

    def _older_cut(self, given: Args) -> Cut | None:
        """The cut of the front that the cache has an older store of; None where the new blocks cannot be run alone."""
        self.shorter = self.blocks[: self._keys.index(self.cache.older) + 1]
        self._proven = False
        try:
            older = self._cuts.get(len(self.shorter)) or find_cut(self.model, self.shorter, given)
        except NoCut:
            return None
        return older if older.at in self._whole else None

    def _made(
        self, cut: Cut, given: Args, which: Tensor, indices: Tensor, variant: Tensor | None, samples: int
    ) -> Tensor:
        """What the front returns for some of the samples: from where it ended before, for those that are held there."""
        there = self.cache.holds_older(indices[which], _of(variant, which))
        if self._older is None or not there.any():
            return self._computed(cut, given, which, samples)
        some = which[there]
        self._check(given, some[:1], indices, variant, samples)
        carried = self._carried(self._older, cut, given, some, indices, variant, samples)
        if not self._proven:
            within = CLOSE if self.cache.dtype == "float32" else ALIKE
            self._proven = self._agree(carried[:FEW], cut, given, some[:FEW], samples, within)
            if not self._proven:
                self.cache.drop_older()
                self._older = None
                return self._computed(cut, given, which, samples)
        if len(some) == len(which):
            return carried
        return _merged(len(which), there, carried, self._computed(cut, given, which[~there], samples))

    def _agree(self, rows: Tensor, cut: Cut, given: Args, which: Tensor, samples: int, within: float) -> bool:
        """Whether rows for some of the samples are what the front returns, to a relative difference."""
        made = self._computed(cut, given, which, samples).float()
        return bool((rows.to(made.device) - made).norm() <= within * made.norm())

    def _carried(
        self, older: Cut, cut: Cut, given: Args, which: Tensor, indices: Tensor, variant: Tensor | None, samples: int
    ) -> Tensor:
        """What the front returns for samples that the older store has."""
        if len(which) == 1:  # never for one alone: see `_computed`
            return self._carried(older, cut, given, which.expand(2), indices, variant, samples)[:1]
        held = self.cache.read_older(indices[which], _of(variant, which)).to(_device(given))
        some = given if torch.equal(which, torch.arange(samples)) else select(given, which, samples)
        return older.onward(self.model, some, held, cut, self._front.forwards, self._front.chains)

    def _computed(self, cut: Cut, given: Args, which: Tensor, samples: int) -> Tensor:
        """What the front returns for some of the samples.

        Never for one alone, for which libraries have kernels of their own: with their last bits a resumed run, which
        may miss other samples of a batch, would not go on to the same ones.
        """
        if len(which) == 1:
            return self._computed(cut, given, which.expand(2), samples)[:1]
        whole = torch.equal(which, torch.arange(samples))
        return cut.front(self.model, given if whole else select(given, which, samples), self._front.forwards)

    # ---- whether what is held still is what the front returns ----

    def _opened(self) -> bool:
        """Whether the cache has a store of this front as it is now."""
        tensors = [t for block in self.blocks for m in block.members for t in _own(m)]
        stamp = (_precision(), *((id(t), t._version, t.data_ptr()) for t in tensors))
        if stamp != self._stamp:
            before, self._stamp, self._keys = self._keys, stamp, keys_of_fronts(self.model, self.blocks)
            if before and self._keys != before:
                self._inputs = {}
        return self.cache.key == self._keys[-1]

    def _remember(self, given: Args, which: Tensor, indices: Tensor, variant: Tensor | None, samples: int) -> None:
        for place in which.tolist():
            checksum = _checksum(select(given, torch.tensor([place]), samples))
            if checksum is not None:
                self._inputs[self._sample(place, indices, variant)] = checksum

    def _check(self, given: Args, which: Tensor, indices: Tensor, variant: Tensor | None, samples: int) -> None:
        """Refuses one sample of a batch whose input is another than when it was written."""
        for place in which.tolist():
            known = self._inputs.get(self._sample(place, indices, variant))
            checksum = None if known is None else _checksum(select(given, which, samples))
            if checksum is not None and checksum != known:
                raise ValueError(
                    f"expected the input of sample {int(indices[place])} that the cache was filled with, got another "
                    "(augmentation?), try inputs that depend on the index alone, a few variants of each, or cache='off'"
                )

    def _sample(self, place: int, indices: Tensor, variant: Tensor | None) -> int:
        return int(indices[place]) * self.cache.variants + (0 if variant is None else int(variant[place]))


class FromCache:
    """A model's forward inside of a prefix with a cache, whose modules have the forwards `folded`."""

    def __init__(self, recall: Recall, folded: Forwards, indices: Tensor, variant: Tensor | None) -> None:
        self.recall, self.folded, self.indices, self.variant = recall, folded, indices, variant
        self.before = {module: vars(module).get("forward") for module in (*folded, recall.model)}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self.recall.model
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in args if isinstance(t, Tensor))
        # A compiled graph knows no cache, and what inference makes could not be kept for a training.
        if wanted or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            forward = self.folded.get(model) or self.before[model]
            return type(model).forward(model, *args, **kwargs) if forward is None else forward(*args, **kwargs)
        with replaced(self.before):
            return self.recall((args, kwargs), self.indices, self.variant)


def keys_of_fronts(model: nn.Module, blocks: Sequence[FreezeBlock]) -> list[str]:
    """For the front of the first block, of two, ...: a digest of all that its output depends on but the sample.

    That is layers, weights, statistics and precision.
    """
    digest, keys = hashlib.sha256(f"{__version__} {_precision()}".encode()), []
    names = {module: name for name, module in model.named_modules()}
    for block in blocks:
        digest.update(block.name.encode())
        loose = list(block.parameters)
        for module in block.members:
            form = module.window if isinstance(module, SparseLayer) else module.extra_repr()
            digest.update(f"{names.get(module, '')} {type(module).__qualname__} {form}".encode())
            loose += [(names.get(module, ""), t) for t in _own(module)]
        for name, tensor in loose:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        keys.append(digest.copy().hexdigest())
    return keys


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _precision() -> str:
    on = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return " ".join(f"{kind} {torch.get_autocast_dtype(kind)}" for kind in on)


def _merged(samples: int, there: Tensor, held: Tensor, made: Tensor) -> Tensor:
    """Rows [samples, ...] of which `held` are those that are `there` [samples] and `made` the others."""
    held = held.to(made.device)
    rows = torch.empty_like(held[:1].expand(samples, *held.shape[1:]))
    rows[there.to(made.device)], rows[~there.to(made.device)] = held, made
    return rows


def _of(variant: Tensor | None, which: Tensor) -> Tensor | None:
    return None if variant is None else variant[which]


def _device(given: Args) -> torch.device:
    return next(t.device for t in tensors(given))


def _checksum(given: Args) -> int | None:
    """Of the numbers in the arguments; None for those of a GPU, which would be waited for."""
    found = 0
    for tensor in tensors(given):
        if not tensor.is_cpu:
            return None
        found = zlib.crc32(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy(), found)
    return found
