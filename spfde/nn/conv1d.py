"""A one-dimensional convolution with a sparse weight: one of images with a single row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spfde.nn.conv2d import SparseConv2d
from spfde.nn.loading import check_dense
from spfde.nn.shell import filled, shell_of


class SparseConv1d(SparseConv2d):
    """The cross-correlation of x with a sparse weight, plus bias.

    Input [batch, in_channels, length], output [batch, out_channels, out_length]. Any stride, padding, dilation, groups
    and padding mode of torch.nn.Conv1d. `shape` is that of the kernels, [out, in / groups, 1, taps].
    """

    def __init__(self, conv: nn.Conv1d, mask: Tensor | None, pattern: str, positions: Tensor | None = None) -> None:
        padding = conv.padding if isinstance(conv.padding, str) else (0, *conv.padding)
        wide = nn.Conv2d(
            conv.in_channels, conv.out_channels, (1, *conv.kernel_size), (1, *conv.stride), padding,
            (1, *conv.dilation), conv.groups, bias=False, padding_mode=conv.padding_mode, device="meta",
        )  # fmt: skip
        wide.weight = nn.Parameter(conv.weight.detach().unsqueeze(2), conv.weight.requires_grad)
        wide.bias = conv.bias
        super().__init__(wide, None if mask is None else mask.unsqueeze(2), pattern, positions)
        self.__dict__["_shell"] = shell_of(conv)  # no submodule
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation

    @classmethod
    def from_dense(cls, conv: nn.Conv1d, mask: Tensor | None = None, pattern: str = "unstructured") -> SparseConv1d:
        """As `SparseConv2d.from_dense`, of a torch.nn.Conv1d."""
        check_dense(conv, nn.Conv1d)
        return cls(conv, mask, pattern).train(conv.training)

    @property
    def kernel_size(self) -> tuple[int]:
        """Taps of the kernel."""
        return (self.shape[3],)

    @property
    def dense_shape(self) -> torch.Size:
        """The shape of the dense weight as torch has it."""
        return torch.Size((*self.shape[:2], self.shape[3]))

    def forward(self, x: Tensor) -> Tensor:
        """x: [(batch,) in_channels, length]. Returns [(batch,) out_channels, out_length]."""
        if type(x) is not Tensor and (node := self._traced(x)) is not None:
            return node
        return super().forward(x.unsqueeze(-2)).squeeze(-2)

    def to_dense(self) -> nn.Conv1d:
        """A torch.nn.Conv1d with the same outputs, zeros exact, and the same bias Parameter."""
        return filled(self._shell, self.dense_weight(), self.values.requires_grad, self.bias, self.training)
