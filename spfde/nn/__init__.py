"""Drop-in modules: weights stored and multiplied sparse; a norm with its activation."""

from spfde.nn.conv2d import SparseConv2d
from spfde.nn.layer import SparseLayer
from spfde.nn.linear import SparseLinear
from spfde.nn.norm import FusedNormAct2d

__all__ = ["FusedNormAct2d", "SparseConv2d", "SparseLayer", "SparseLinear"]
