"""Drop-in modules whose weights are stored and multiplied sparse."""

from spfde.nn.conv2d import SparseConv2d
from spfde.nn.layer import SparseLayer
from spfde.nn.linear import SparseLinear

__all__ = ["SparseConv2d", "SparseLayer", "SparseLinear"]
