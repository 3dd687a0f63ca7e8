"""Convolutions that standardise their weight in every forward (BiT, NF-ResNet), with a sparse weight."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spfde.kernels.conv2d import conv2d
from spfde.nn.conv2d_same import SparseConv2dSame
from spfde.sparse.plan import Plan


class SparseStdConv2d(SparseConv2dSame):
    """The convolution by gain * (W - mean) / sqrt(variance + eps), each of W's outputs by itself, for a sparse W.

    timm's StdConv2d and ScaledStdConv2d, and those that pad as TensorFlow's "SAME": `gain` is a Parameter or None, of
    the latter times 1 / sqrt(fan-in). Zeros count in mean and variance, as they do in the masked dense layer. What the
    mean takes off every weight, stored or not, is one number an output: the sum over the input's window times that is
    taken off the sparse product. Source: weight standardization (1903.10520), scaled (2101.08692).

    While a topology watches the dense gradient the layer multiplies densely, so that it is that of W.
    """

    gain: nn.Parameter | None

    def __init__(self, conv: nn.Conv2d, mask: Tensor | None, pattern: str, positions: Tensor | None = None) -> None:
        super().__init__(conv, mask, pattern, positions)
        self.same_pad = getattr(conv, "same_pad", False)
        self._pads_or_thins = self._every is not None or self._pad_before is not None or self.same_pad
        self.eps: float = conv.eps
        self.scale: float = getattr(conv, "scale", 1.0)
        self.register_parameter("gain", getattr(conv, "gain", None))

    @staticmethod
    def obstacle(conv: nn.Module) -> str | None:
        """What of a dense layer has no sparse form, or None."""
        return None if isinstance(getattr(conv, "eps", None), float) else "without eps, a number"

    def forward(self, x: Tensor) -> Tensor:
        """x: [(batch,) in_channels, height, width]. Returns [(batch,) out_channels, out_height, out_width]."""
        if type(x) is not Tensor and (node := self._traced(x)) is not None:
            return node
        if self._pads_or_thins:
            x = self._prepared(x)
        if self._grad_probe is not None and not torch.compiler.is_compiling():
            return self._multiply_densely(x)
        values, shift = self._standardised()
        y = conv2d(x, values, self.plan, self.bias, self._dispatch_key)
        # Each output loses its shift times what its window holds.
        groups = self.window.groups
        with torch.autocast(x.device.type, enabled=False):
            lost = shift.view(groups, -1, 1, 1) * self._window_sums(x.to(shift.dtype)).unsqueeze(-3)
        return y - lost.flatten(-4, -3).to(y.dtype)

    def _standardised(self) -> tuple[Tensor, Tensor]:
        """Stored weights as they are multiplied, and what is to be taken off all of an output's weights [outputs]."""
        values, size = self._effective(), prod(self.shape[1:])
        values = values if values.dtype == torch.float64 else values.float()
        output, inside, count = self.plan.derive("outputs of weights", _outputs)
        flat, dead = output.view(-1), self.shape[0]

        def total(each: Tensor) -> Tensor:
            return each.new_zeros(dead + 1).index_add(0, flat, (each * inside).sum(2).view(-1))

        def spread(each: Tensor) -> Tensor:
            return each.index_select(0, flat).view(*output.shape, 1)

        mean = total(values) / size
        squares = total((values - spread(mean)).square()) + (size - count) * mean.square()
        scale = (squares / size + self.eps).rsqrt()
        if self.gain is not None:
            scale = scale * F.pad(self.gain.view(-1).to(scale.dtype) * self.scale, (0, 1))
        return values * spread(scale), (scale * mean)[:dead]

    def _window_sums(self, x: Tensor) -> Tensor:
        """The sum of the input over the window of each output pixel: [(batch,) groups, out_height, out_width]."""
        window, groups = self.window, self.window.groups
        sums = x.unflatten(-3, (groups, -1)).sum(-3)
        if window.kernel == (1, 1) and not any(window.padding) and window.stride == (1, 1):
            return sums
        top, bottom, left, right = window.padding
        ones = sums.new_ones(groups, 1, *window.kernel)
        sums = F.pad(sums, (left, right, top, bottom))
        return F.conv2d(sums, ones, None, window.stride, 0, window.dilation, groups)

    def _multiply_densely(self, x: Tensor) -> Tensor:
        weight = self._dense().flatten(1)
        variance, mean = torch.var_mean(weight, 1, correction=0, keepdim=True)
        weight = (weight - mean) * (variance + self.eps).rsqrt()
        weight = (weight if self.gain is None else weight * self.gain.view(-1, 1) * self.scale).view(self.shape)
        window = self.window
        top, bottom, left, right = window.padding
        x = F.pad(x, (left, right, top, bottom))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, weight.to(x.dtype), bias, window.stride, 0, window.dilation, window.groups)

    def to_dense(self) -> nn.Conv2d:
        """The kind of layer it was made of, with the same outputs, zeros exact, and the same bias and gain."""
        conv = super().to_dense()
        if self.gain is not None:
            conv.gain = self.gain
        return conv


def _outputs(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """The output of each row of a slot, and what is stored of each.

    [capacity, R] outputs, plan.rows where there is none; [capacity, R, C] whether a weight is stored; [plan.rows + 1]
    how many are.
    """
    capacity, height, width = plan.values_shape
    output = torch.full((capacity, height), plan.rows, dtype=torch.int64, device=plan.index.col.device)
    inside = torch.zeros(plan.values_shape, dtype=torch.bool, device=output.device)
    positions = plan.positions
    first = (positions // plan.grid.shape[1] * height).view(-1, 1)
    output[: plan.nnz] = (first + torch.arange(height, device=output.device)).clamp_(max=plan.rows)
    inside[: plan.nnz] = plan.grid.places(positions).view(-1, height, width) < plan.grid.weights
    count = torch.zeros(plan.rows + 1, dtype=torch.int64, device=output.device)
    return output, inside, count.index_add_(0, output.view(-1), inside.sum(2).view(-1))
