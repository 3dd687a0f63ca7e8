"""Modules that keep the weights of several layers in one Parameter, taken apart into layers and put together again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from spfde.nn.attention import PACKED, SparseMultiheadAttention, unpackable
from spfde.nn.refusals import owners_of
from spfde.nn.retired import retire_named
from spfde.nn.select import swap


@dataclass(frozen=True, eq=False)
class Unpacked:
    """A model whose packed modules are taken apart, and how they were: name, module and successor of each."""

    model: nn.Module
    packs: tuple[tuple[str, nn.Module, SparseMultiheadAttention], ...]

    def undo(self) -> None:
        """Every module is again what it was."""
        swap(self.model, {new: old for _, old, new in self.packs})

    def keep_sparse(self, model: nn.Module, by: str) -> nn.Module:
        """Puts together again what has no sparse layer; what stays apart is retired (see `spfde.nn.retired`).

        model: the same by now. Returns it, or what takes its place.
        """
        whole = {new: old for _, old, new in self.packs if not new.is_sparse}
        for new, old in whole.items():
            old.out_proj = new.out_proj
        for parameter in PACKED:
            retire_named({name: old for name, old, new in self.packs if new.is_sparse}, parameter, by)
        return swap(model, whole)


def unpack(model: nn.Module) -> Unpacked:
    """The model with each nn.MultiheadAttention as one whose projections are layers, in place (a bare one anew)."""
    owners = owners_of(model)
    found = [(name, module) for name, module in model.named_modules() if unpackable(module, owners)]
    packs = tuple((name, old, SparseMultiheadAttention(old)) for name, old in found)
    return Unpacked(swap(model, {old: new for _, old, new in packs}), packs)


def pack(model: nn.Module) -> nn.Module:
    """Puts together what is taken apart, in place (a bare one anew), where all of it is dense."""
    apart = [m for m in model.modules() if isinstance(m, SparseMultiheadAttention) and not m.is_sparse]
    return swap(model, {module: module.packed() for module in apart})
