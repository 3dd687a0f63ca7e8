"""Drop-in modules: weights stored and multiplied sparse; a norm with its activation."""

from spfde.nn.attention import SparseMultiheadAttention
from spfde.nn.conv1d import SparseConv1d
from spfde.nn.conv2d import SparseConv2d
from spfde.nn.conv2d_same import SparseConv2dSame
from spfde.nn.conv_transpose2d import SparseConvTranspose2d
from spfde.nn.experts import SparseExperts
from spfde.nn.layer import SparseLayer
from spfde.nn.linear import SparseConv1D, SparseLinear
from spfde.nn.norm import FusedNormAct2d
from spfde.nn.std_conv2d import SparseStdConv2d

__all__ = [
    "FusedNormAct2d",
    "SparseConv1D",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv2dSame",
    "SparseConvTranspose2d",
    "SparseExperts",
    "SparseLayer",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseStdConv2d",
]
