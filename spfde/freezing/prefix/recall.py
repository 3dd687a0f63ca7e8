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
from spfde.freezing.prefix.cut import Args, Cut, Forwards, NoCut, agree, call, count, find_cut, replaced, select
from spfde.nn import SparseLayer

ALIKE = 0.1  # relative difference to which files agree with what is computed: int8 stays far below, other data above


class Recall:
    """The use of a cache at one boundary of a model.

    blocks: the frozen front. samples: indices are below. forwards: what stands in for the model's forwards while the
    front runs, but for modules that have to be called. reason: why the cache is not used, "" where it is.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        cache: ActivationCache,
        samples: int,
        forwards: Callable[[Sequence[nn.Module]], Forwards],
    ) -> None:
        self.model, self.blocks, self.cache, self.samples = model, tuple(blocks), cache, samples
        self._forwards_but_for = forwards
        self._forwards: Forwards = {}
        self._cut: Cut | None = None
        self._stamp: tuple[Any, ...] | None = None
        self._key = self.reason = ""
        self._inputs: dict[int, int] = {}  # checksums, by sample and variant

    def __call__(self, given: Args, indices: Tensor, variant: Tensor | None) -> Any:
        """What the model returns for the arguments `given`, those of the samples `indices`."""
        if self._cut is None and not self.reason:
            try:
                self._cut = find_cut(self.model, self.blocks, given)
                forwards = self._forwards_but_for([self._cut.at])
                self._forwards = forwards if agree(self._cut, self.model, given, forwards) else {}
            except NoCut as problem:
                self.reason, self._forwards = str(problem), self._forwards_but_for(())
        if self._cut is None:
            with replaced(self._forwards):
                return call(self.model, given)
        return self._cut.rest(self.model, given, self._boundary(self._cut, given, indices, variant))

    def _boundary(self, cut: Cut, given: Args, indices: Tensor, variant: Tensor | None) -> Tensor:
        samples = count(given)
        if samples != len(indices):
            raise ValueError(
                f"expected an index for each of {samples} samples, got {len(indices)}, try the batch's own"
            )
        opened = self._opened()
        there = self.cache.lookup(indices, variant) if opened else torch.zeros(samples, dtype=torch.bool)
        missing = (~there).nonzero().view(-1)
        made = read = None
        if len(missing):
            made = self._computed(cut, given, missing, samples)
            if not opened:
                there = self._open(made, indices, variant)
                missing = (~there).nonzero().view(-1)
                made = made[missing.to(made.device)]
            made = self.cache.write(indices[missing], made, _of(variant, missing))
        if len(missing) < samples:
            held = there.nonzero().view(-1)
            self._check(given, held[:1], indices, variant, samples)
            read = self.cache.read(indices[held], _of(variant, held))
        self._remember(given, missing, indices, variant, samples)
        if made is None or read is None:
            boundary = made if read is None else read
            return boundary.to(_device(given))
        read = read.to(made.device)
        boundary = torch.empty_like(read[:1].expand(samples, *read.shape[1:]))
        boundary[there.to(made.device)], boundary[missing.to(made.device)] = read, made
        return boundary

    def _open(self, made: Tensor, indices: Tensor, variant: Tensor | None) -> Tensor:
        """Opens the store of this front, and says which of a whole batch files of an earlier process hold: bool [n].

        They have to agree with what the batch is now: a data set may be another one under the same weights.
        """
        last = made.dim() == 4 and made.is_contiguous(memory_format=torch.channels_last) and not made.is_contiguous()
        form = (self._key, self.samples, made.shape[1:], made.dtype, last)
        self.cache.open(*form)
        there = self.cache.lookup(indices, variant)
        if not there.any():
            return there
        held = self.cache.read(indices[there], _of(variant, there)).to(made.device).float()
        computed = made[there.to(made.device)].float()
        if (held - computed).norm() > ALIKE * computed.norm():
            self.cache.drop()
            self.cache.open(*form)
            return torch.zeros_like(there)
        return there

    def _computed(self, cut: Cut, given: Args, which: Tensor, samples: int) -> Tensor:
        """What the front returns for some of the samples.

        Never for one alone, for which libraries have kernels of their own: with their last bits a resumed run, which
        may miss other samples of a batch, would not go on to the same ones.
        """
        if len(which) == 1:
            return self._computed(cut, given, which.expand(2), samples)[:1]
        whole = torch.equal(which, torch.arange(samples))
        return cut.front(self.model, given if whole else select(given, which, samples), self._forwards)

    # ---- whether what is held still is what the front returns ----

    def _opened(self) -> bool:
        """Whether the cache has a store of this front as it is now."""
        tensors = [t for block in self.blocks for m in block.members for t in _own(m)]
        stamp = (_precision(), *((id(t), t._version, t.data_ptr()) for t in tensors))
        if stamp != self._stamp:
            before, self._stamp, self._key = self._key, stamp, key_of(self.model, self.blocks)
            self._inputs = self._inputs if self._key == before else {}
        return self.cache.key == self._key

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


def key_of(model: nn.Module, blocks: Sequence[FreezeBlock]) -> str:
    """A digest of all that the front's output depends on but the sample: layers, weights, statistics, precision."""
    digest = hashlib.sha256(f"{__version__} {blocks[-1].name} {_precision()}".encode())
    members = {m for block in blocks for m in block.members}
    loose = [(name, p) for block in blocks for name, p in block.parameters]
    for name, module in model.named_modules():
        if module in members:
            form = module.window if isinstance(module, SparseLayer) else module.extra_repr()
            digest.update(f"{name} {type(module).__qualname__} {form}".encode())
            loose += [(name, t) for t in _own(module)]
    for name, tensor in loose:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _precision() -> str:
    on = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return " ".join(f"{kind} {torch.get_autocast_dtype(kind)}" for kind in on)


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
