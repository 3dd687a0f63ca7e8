"""Which frozen layers begin a call of their own with what follows them, and what stands for them there."""

from __future__ import annotations

from torch import nn

from spfde.freezing.prefix.folded import CONVOLUTIONS, Folded, Pick
from spfde.freezing.prefix.linear import LINEARS, FoldedLinear
from spfde.fusing.epilogue import hooked
from spfde.models.resnet import PadShortcut
from spfde.nn import SparseLayer

FoldedLayer = Folded | FoldedLinear | Pick
FOLDABLE = (*CONVOLUTIONS, *LINEARS)


def folded_of(layer: nn.Module, norm: nn.Module | None) -> FoldedLayer:
    """What stands for a layer, and the norm behind it."""
    if type(layer) is PadShortcut:
        return Pick(layer)
    return FoldedLinear(layer) if type(layer) in LINEARS else Folded(layer, norm)


def obstacle(layer: nn.Module) -> str:
    """Why a layer cannot be one with what follows it, empty if it can."""
    if type(layer) not in FOLDABLE:
        return f"{type(layer).__name__} is no layer of torch.nn or spfde.nn itself"
    if hooked(layer):
        return "it has hooks, which would see another output"
    if "forward" in vars(layer):
        return "its forward is replaced on the instance"
    return layer.detour if isinstance(layer, SparseLayer) else ""
