"""A two-dimensional convolution with a sparse weight that pads by its input's size, as TensorFlow's "SAME" does."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spfde.nn.conv2d import SparseConv2d
from spfde.nn.shell import filled, shell_of


class SparseConv2dSame(SparseConv2d):
    """timm's Conv2dSame with a sparse weight: ceil(size / stride) outputs, the odd zero at the bottom and right."""

    def __init__(self, conv: nn.Conv2d, mask: Tensor | None, pattern: str, positions: Tensor | None = None) -> None:
        super().__init__(conv, mask, pattern, positions)
        self.__dict__["_shell"] = shell_of(conv)  # no submodule
        self.same_pad: bool = getattr(conv, "same_pad", True)
        self._pads_or_thins = self._pads_or_thins or self.same_pad

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, mask: Tensor | None = None, pattern: str = "unstructured") -> SparseConv2dSame:
        """As `SparseConv2d.from_dense`, of a layer that computes as timm's: that is not checked."""
        return cls(conv, mask, pattern).train(conv.training)

    def _prepared(self, x: Tensor) -> Tensor:
        if self.same_pad:
            sides: list[int] = []
            taps = zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
            for size, kernel, stride, dilation in taps:
                more = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
                sides = [more // 2, more - more // 2, *sides]  # the last dimension comes first
            x = F.pad(x, sides) if any(sides) else x
        return super()._prepared(x)

    def to_dense(self) -> nn.Conv2d:
        """The kind of layer it was made of, with the same outputs, zeros exact, and the same bias Parameter."""
        return filled(self._shell, self.dense_weight(), self.values.requires_grad, self.bias, self.training)
