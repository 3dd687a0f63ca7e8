"""Ops on sparse weights, one module each: checks, reference, dispatch, torch.library registration."""

from spfde.kernels import clock, conv2d_ops, norm_act_ops
from spfde.kernels.conv2d import conv2d
from spfde.kernels.dispatch.rule import KernelChoice
from spfde.kernels.norm_act import norm_act
from spfde.kernels.spmm import spmm

__all__ = ["KernelChoice", "clock", "conv2d", "conv2d_ops", "norm_act", "norm_act_ops", "spmm"]
