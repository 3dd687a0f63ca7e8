"""A two-dimensional convolution with a sparse weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from spfde.kernels.conv2d import conv2d, conv2d_with_epilogue
from spfde.kernels.conv2d_norm_act import conv2d_norm_act
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.memory_format import memory_format_of
from spfde.nn.indexed import Stored
from spfde.nn.layer import SparseLayer
from spfde.nn.loading import check_dense
from spfde.sparse.kernel_index import Window


class SparseConv2d(SparseLayer):
    """The cross-correlation of x with a sparse weight, plus bias.

    Input [batch, in_channels, height, width], output [batch, out_channels, out_height, out_width]. Any stride, padding,
    dilation, groups and padding mode of torch.nn.Conv2d.
    """

    def __init__(self, conv: nn.Conv2d, mask: Tensor | None, pattern: str, positions: Tensor | None = None) -> None:
        self.padding_mode = conv.padding_mode
        self.padding = conv.padding
        sides = padding_sides(conv)
        zeros = sides if conv.padding_mode == "zeros" else (0, 0, 0, 0)
        window = Window(conv.kernel_size, conv.stride, zeros, conv.dilation, conv.groups)
        self.stride, self.dilation = window.stride, window.dilation
        # With one tap, pixels that a stride skips are read by nothing: without them it is a product over pixels.
        thins = window.kernel == (1, 1) and not any(zeros) and window.stride != (1, 1)
        self._every = window.stride if thins else None
        window = Window(groups=conv.groups) if thins else window
        super().__init__(Stored.of(conv.weight, mask, pattern, conv.groups, positions), conv.bias, pattern, window)
        self._pad_before = None if conv.padding_mode == "zeros" else (sides[2], sides[3], sides[0], sides[1])
        self._pads_or_thins = thins or self._pad_before is not None

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, mask: Tensor | None = None, pattern: str = "unstructured") -> SparseConv2d:
        """The layer with the weights of `conv` that `mask` keeps (its nonzeros if None) and the same bias Parameter.

        The weights are copied: what else uses the dense one (tied weights) is not followed. Hooks are not taken over.

        Raises:
            ValueError: its weight is no plain Parameter with data, the mask's shape or dtype differs from the weight's,
                the pattern is unknown, or the mask (or the nonzeros) violate it: the first such place is named.
            TypeError: `conv` is not a torch.nn.Conv2d, or computes something else than one.
        """
        check_dense(conv, nn.Conv2d)
        return cls(conv, mask, pattern).train(conv.training)

    @classmethod
    def at(cls, conv: nn.Conv2d, positions: Tensor, pattern: str) -> SparseConv2d:
        """The layer that holds the blocks of `conv` at `positions`: ascending, as the pattern allows, unchecked."""
        return cls(conv, None, pattern, positions).train(conv.training)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.shape[1] * self.window.groups

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.shape[0]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Rows and columns of the kernel."""
        return self.window.kernel

    @property
    def groups(self) -> int:
        """Number of blocked channel groups."""
        return self.window.groups

    def forward(self, x: Tensor) -> Tensor:
        """x: [(batch,) in_channels, height, width]. Returns [(batch,) out_channels, out_height, out_width]."""
        if type(x) is not Tensor and (node := self._traced(x)) is not None:
            return node
        if self._pads_or_thins:
            x = self._prepared(x)
        if "permutation" in self._modules and (outer := self._outer()) is not None:
            return outer(x, self.bias, self._product)
        return self._product(x, self.bias)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        values = self.values if "transform" not in self._modules else self._effective()
        y = conv2d(x, values, self.plan, bias, self._dispatch_key)
        if self._grad_probe is not None:
            self._attach_probe(x, y)
        return y

    def call_with_epilogue(self, x: Tensor, epilogue: Callable[[], Epilogue]) -> tuple[Tensor, bool]:
        """The output, and whether the epilogue is in it: see `conv2d_with_epilogue`. For no transform and no probe."""
        x = self._prepared(x) if self._pads_or_thins else x
        y = conv2d_with_epilogue(x, self.values, self.plan, epilogue, self._dispatch_key)
        return (conv2d(x, self.values, self.plan, self.bias, self._dispatch_key), False) if y is None else (y, True)

    def call_with_norm(self, x: Tensor, *norm: Tensor | None, **options: Any) -> Tensor | None:
        """y of the convolution and a norm behind it, None where they must be called apart: see `conv2d_norm_act`.

        For no detour and no probe.
        """
        x = self._prepared(x) if self._pads_or_thins else x
        return conv2d_norm_act(x, self.values, self.plan, self.bias, self._dispatch_key, *norm, **options)

    def _prepared(self, x: Tensor) -> Tensor:
        """What the window is moved over: padded in another mode than with zeros, without pixels that nothing reads."""
        if self._pad_before is not None:
            x = F.pad(x, self._pad_before, mode=self.padding_mode)
        if self._every is not None:
            x = x[..., :: self._every[0], :: self._every[1]].contiguous(memory_format=memory_format_of(x))
        return x

    def to_dense(self) -> nn.Conv2d:
        """A torch.nn.Conv2d with the same outputs, zeros exact, and the same bias Parameter."""
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, bias=False, padding_mode=self.padding_mode, device="meta",
        )  # fmt: skip
        conv.weight = nn.Parameter(self.dense_weight().clone(), self.values.requires_grad)  # all of its storage
        conv.bias = self.bias
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """What repr() shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, {self._shared_repr()}"
        )


def padding_sides(conv: nn.Conv2d | SparseConv2d) -> tuple[int, int, int, int]:
    """Padding at the top, bottom, left and right; "same" puts the odd one at the bottom and right, as torch does."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        total_h, total_w = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        return total_h // 2, total_h - total_h // 2, total_w // 2, total_w - total_w // 2
    pad_h, pad_w = conv.padding
    return pad_h, pad_h, pad_w, pad_w
