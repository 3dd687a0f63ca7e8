"""Modules that keep the weights of several layers in one Parameter, taken apart into layers and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from spfde.nn.attention import SparseMultiheadAttention, unpackable
from spfde.nn.experts import SparseExperts, divisible
from spfde.nn.refusals import owners_of
from spfde.nn.retired import retire_named
from spfde.nn.select import swap
from spfde.nn.weighted import copy_note

Apart = SparseMultiheadAttention | SparseExperts
_KINDS: dict[type[Apart], Callable[[nn.Module, Mapping[int, Iterable[str]]], bool]] = {
    SparseMultiheadAttention: unpackable,
    SparseExperts: divisible,
}


@dataclass(frozen=True, eq=False)
class Unpacked:
    """A model whose packed modules are taken apart, and how they were: name, module and successor of each."""

    model: nn.Module
    packs: tuple[tuple[str, nn.Module, Apart], ...]

    def undo(self) -> None:
        """Every module is again what it was."""
        swap(self.model, {new: old for _, old, new in self.packs})

    def keep_sparse(self, model: nn.Module, by: str) -> nn.Module:
        """Puts together again what has no sparse layer; what stays apart is retired (see `spfde.nn.retired`).

        model: the same by now. Returns it, or what takes its place.
        """
        whole = {new: old for _, old, new in self.packs if not new.is_sparse}
        for new, old in whole.items():
            copy_note(new, old)
            old._modules.update({name: part for name, part in new.named_children() if name in old._modules})
        for name, old, new in self.packs:
            if new not in whole:
                _own(new)
                for parameter in new.replaced:
                    retire_named({name: old}, parameter, by)
        return swap(model, whole)


def unpack(model: nn.Module) -> Unpacked:
    """The model with each nn.MultiheadAttention, and each module of experts, as layers, in place (a bare one anew)."""
    owners = owners_of(model)
    packs = tuple(
        (name, old, apart(old))
        for name, old in model.named_modules()
        for apart, fits in _KINDS.items()
        if fits(old, owners)
    )
    return Unpacked(swap(model, {old: new for _, old, new in packs}), packs)


def pack(model: nn.Module) -> nn.Module:
    """Puts together what is taken apart, in place (a bare one anew), where all of it is dense."""
    apart = [m for m in model.modules() if isinstance(m, Apart) and not m.is_sparse]
    return swap(model, {module: module.packed() for module in apart})


def _own(apart: nn.Module) -> None:
    """Gives dense layers memory of their own, where theirs is a part of what was packed."""
    for layer in apart.modules():
        weight = layer._parameters.get("weight")
        if weight is not None and weight.untyped_storage().nbytes() > weight.nbytes:
            weight.data = weight.data.clone()
