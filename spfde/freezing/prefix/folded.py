"""A frozen convolution and the frozen norm behind it as one convolution: weights scaled by output, and a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spfde.kernels.call import Seen
from spfde.kernels.conv2d import conv2d, conv2d_with_epilogue
from spfde.kernels.dispatch import rule
from spfde.kernels.dtypes import through_dispatcher
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.problem import problem_of
from spfde.kernels.triton import why_not
from spfde.models.resnet import PadShortcut
from spfde.nn import SparseConv2d
from spfde.nn.conv2d import padding_sides
from spfde.sparse.kernel_index import Window

CONVOLUTIONS = (SparseConv2d, nn.Conv2d)  # these very types: a subclass may do something else


class Folded:
    """norm(conv(x)) of frozen modules as one convolution with `weights` and `bias`.

    weights: the values of a sparse layer [capacity, R, C], the dense weight of another. bias: [outputs] or None. Both
    are copies that follow from the modules and are never saved; `refresh` brings them up to what was written since.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module | None = None) -> None:
        self.layer, self.norm = layer, norm
        self.sparse = isinstance(layer, SparseConv2d)
        self.weights: Tensor | None = None
        self.bias: Tensor | None = None
        self.version = 0  # how often it was folded
        self._stamp: tuple[Any, ...] | None = None
        self.refresh()

    def outputs(self, channels: int) -> int:
        """Channels of the output for an input of so many."""
        return self.layer.out_channels

    @property
    def window(self) -> Window:
        """How the convolution is applied to what it is given, with its padding of any mode."""
        layer = self.layer
        if not self.sparse:
            return Window(layer.kernel_size, layer.stride, padding_sides(layer), layer.dilation, layer.groups)
        if layer._pad_before is not None:
            return layer.window._replace(padding=padding_sides(layer))
        return layer.window._replace(stride=layer._every) if layer._every is not None else layer.window

    def stored(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
        """row_ptr, col and weights [units, 1, 1] for inputs of this shape on a CPU, as `conv_chain` reads them.

        None where it reads no such layer, or another kernel than the native one is to run.
        """
        layer = self.layer
        if not self.sparse or layer._pad_before is not None or self.weights.dtype != torch.float32:
            return None
        plan = layer.plan
        if plan.arranged_block != (1, 1) or plan.kept_rows is not None:
            return None
        seen = shape[:2] + self.window.output_size(*shape[2:]) if layer._every is not None else shape
        problem = problem_of(plan.shape, seen, plan.multiplied, plan.block, plan.window, "cpu", torch.float32)
        if rule.choose(layer.dispatch_key, "cpu", torch.float32, problem).kernel != "native":
            return None
        plan.last_seen = Seen("cpu", torch.float32, seen)
        return plan.kernel_index.row_ptr, plan.kernel_index.col, plan.arrange(self.weights).contiguous()

    @property
    def key(self) -> str:
        """What settles the kernel of a sparse layer, "" for another."""
        return self.layer.dispatch_key if self.sparse else ""

    def refresh(self) -> None:
        """Folds anew if anything was written since the last time."""
        stamp = self._written()
        if stamp == self._stamp:
            return
        with torch.inference_mode(False), torch.no_grad():
            weights, bias = self._fold()
            if not (_same(self.weights, weights) and _same(self.bias, bias)):  # DDP writes what is there, at every step
                self.weights, self.bias = _into(self.weights, weights), _into(self.bias, bias)
                self.version += 1
        self._stamp = stamp

    def _written(self) -> tuple[Any, ...]:
        """What changes whenever one of the tensors that are folded does, or where the values lie."""
        tensors = [*self.layer._parameters.values()]
        norm = self.norm
        if norm is not None:
            tensors += [norm.running_mean, norm.running_var, norm.weight, norm.bias]
            tensors += [norm.num_batches_tracked]  # torch counts no write of the statistics
        moved = self.layer.plan.topology_version if self.sparse else 0
        return moved, *((id(t), t._version, t.dtype, t.device, _address(t)) for t in tensors if t is not None)

    def _fold(self) -> tuple[Tensor, Tensor | None]:
        weights = (self.layer.values if self.sparse else self.layer.weight).detach()
        bias, norm = self.layer.bias, self.norm
        if norm is None:
            return weights.clone(), None if bias is None else bias.detach().clone()
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        shift = shift if norm.bias is None else shift + norm.bias.double()
        shift = shift if bias is None else shift + scale * bias.double()
        # Sparse products take weights of another precision than the input; torch's own do not.
        kept = torch.promote_types(weights.dtype, torch.float32) if self.sparse else weights.dtype
        by_row = self._by_place(scale) if self.sparse else scale.view(-1, 1, 1, 1)
        return (weights.double() * by_row).to(kept), shift.to(kept)

    def _by_place(self, scale: Tensor) -> Tensor:
        """The scale of the output that each stored weight belongs to, [capacity, R, C]; 0 for those of none."""
        plan = self.layer.plan
        rows = plan.grid.places(plan.positions) // plan.cols
        found = scale.new_zeros(plan.values_shape)
        found[: plan.nnz] = torch.cat([scale, scale.new_zeros(1)])[rows]
        return found

    def product(self, x: Tensor) -> Tensor:
        """The convolution of x."""
        layer = self.layer
        if not self.sparse:
            return layer._conv_forward(x, self.weights, self.bias)
        x = layer._prepared(x) if layer._pads_or_thins else x
        return conv2d(x, self.weights, layer.plan, self.bias, layer.dispatch_key)

    def with_epilogue(self, x: Tensor, residual: Tensor | None, act: str) -> Tensor | None:
        """act(conv(x) + residual) in the layer's kernel, None where that has no such end."""
        layer = self.layer
        if not self.sparse or through_dispatcher(x) or why_not(x.device.type) is not None:
            return None
        x, end = layer._prepared(x) if layer._pads_or_thins else x, Epilogue(self.bias, residual=residual, act=act)
        return conv2d_with_epilogue(x, self.weights, layer.plan, lambda: end, layer.dispatch_key)


class Pick:
    """A frozen shortcut without weights as a `Folded`: pixels a stride apart, between channels of zeros."""

    norm = bias = None
    sparse, version, key = False, 0, ""

    def __init__(self, layer: PadShortcut) -> None:
        self.layer = layer
        self.window = Window(stride=(layer.stride, layer.stride))

    def refresh(self) -> None:
        """Nothing to fold."""

    def outputs(self, channels: int) -> int:
        """Channels of the output for an input of so many."""
        return channels + sum(self.layer.pad)

    def stored(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
        """As a convolution of one weight, 1, for each channel of the input."""
        channels, outputs = shape[1], self.outputs(shape[1])
        rows = torch.arange(outputs + 1, dtype=torch.int32) - self.layer.pad[4]
        return rows.clamp(0, channels), torch.arange(channels, dtype=torch.int32), torch.ones(channels, 1, 1)

    def product(self, x: Tensor) -> Tensor:
        """What the shortcut returns."""
        return self.layer(x)

    def with_epilogue(self, x: Tensor, residual: Tensor | None, act: str) -> Tensor | None:
        """No kernel has it."""
        return None


def _address(tensor: Tensor) -> int:
    """Where it lies: what is written through `.data` shows there if nowhere else."""
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta else 0


def _same(old: Tensor | None, new: Tensor | None) -> bool:
    if old is None or new is None or old.is_meta or not old.is_cpu:  # a GPU would be waited for
        return old is new
    return (old.shape, old.dtype) == (new.shape, new.dtype) and torch.equal(old, new)


def _into(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The new, in the memory of the old where that fits: compiled code has read it there."""
    same = old is not None and new is not None and (old.shape, old.dtype, old.device) == (
        new.shape, new.dtype, new.device
    )  # fmt: skip
    return old.copy_(new) if same else new
