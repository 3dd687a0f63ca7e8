"""Ops on sparse weights, one module each, and the kernels that run them (see `spfde.kernels.registry`)."""

from spfde.kernels import (  # the kernels register themselves
    clock,
    cuda,
    dense,
    native,
    norm_act_ops,
    reference,
    semi_structured,
)
from spfde.kernels.conv2d import conv2d
from spfde.kernels.norm_act import norm_act
from spfde.kernels.problem import KernelChoice
from spfde.kernels.registry import Kernel, Prediction, Product, register
from spfde.kernels.spmm import spmm
from spfde.kernels.triton import kernel as _triton  # noqa: F401

__all__ = [
    "Kernel",
    "KernelChoice",
    "Prediction",
    "Product",
    "clock",
    "conv2d",
    "cuda",
    "dense",
    "native",
    "norm_act",
    "norm_act_ops",
    "reference",
    "register",
    "semi_structured",
    "spmm",
]
