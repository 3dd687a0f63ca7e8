"""A transposed two-dimensional convolution with a sparse weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from spfde.kernels.conv_transpose2d import conv_transpose2d
from spfde.nn.indexed import Stored
from spfde.nn.layer import SparseLayer
from spfde.nn.loading import check_dense
from spfde.nn.shell import filled, shell_of
from spfde.sparse.kernel_index import Window


class SparseConvTranspose2d(SparseLayer):
    """The transpose of the convolution whose weight [in, out / groups, kernel_h, kernel_w] is sparse, plus bias.

    Input [batch, in_channels, height, width], output [batch, out_channels, out_height, out_width]. Any stride, padding,
    output padding (below the stride), dilation and groups of torch.nn.ConvTranspose2d. The kernels are those of that
    convolution, and so are the patterns: what they say of outputs is of this layer's input channels.
    """

    def __init__(
        self, conv: nn.ConvTranspose2d, mask: Tensor | None, pattern: str, positions: Tensor | None = None
    ) -> None:
        vertical, horizontal = conv.padding
        padding = (vertical, vertical, horizontal, horizontal)
        window = Window(conv.kernel_size, conv.stride, padding, conv.dilation, conv.groups)
        super().__init__(Stored.of(conv.weight, mask, pattern, conv.groups, positions), conv.bias, pattern, window)
        self.output_padding = conv.output_padding
        self.__dict__["_shell"] = shell_of(conv)  # no submodule

    @classmethod
    def from_dense(
        cls, conv: nn.ConvTranspose2d, mask: Tensor | None = None, pattern: str = "unstructured"
    ) -> SparseConvTranspose2d:
        """As `SparseConv2d.from_dense`, of a torch.nn.ConvTranspose2d."""
        check_dense(conv, nn.ConvTranspose2d)
        if (obstacle := cls.obstacle(conv)) is not None:
            raise ValueError(f"expected output_padding below the stride, got a layer {obstacle}, try excluding it")
        return cls(conv, mask, pattern).train(conv.training)

    @classmethod
    def at(cls, conv: nn.ConvTranspose2d, positions: Tensor, pattern: str) -> SparseConvTranspose2d:
        """The layer that holds the blocks of `conv` at `positions`: ascending, as the pattern allows, unchecked."""
        return cls(conv, None, pattern, positions).train(conv.training)

    @staticmethod
    def obstacle(conv: nn.Module) -> str | None:
        """What of a dense layer has no sparse form, or None."""
        fits = all(more < stride for more, stride in zip(conv.output_padding, conv.stride, strict=True))
        return None if fits else f"with output_padding {conv.output_padding} and stride {conv.stride}"

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.shape[0]

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.shape[1] * self.window.groups

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """x: [(batch,) in_channels, height, width]. Returns [(batch,) out_channels, out_height, out_width]."""
        if type(x) is not Tensor and (node := self._traced(x)) is not None:
            return node
        more = self.output_padding if output_size is None else self._padding_for(x, output_size)
        y = conv_transpose2d(x, self._effective(), self.plan, self.bias, more, self._dispatch_key)
        if self._grad_probe is not None:
            self._attach_probe(x, y)
        return y

    def _padding_for(self, x: Tensor, output_size: list[int]) -> tuple[int, int]:
        return tuple(
            self._shell._output_padding(
                x, output_size, self._shell.stride, self._shell.padding, self._shell.kernel_size, 2,
                self._shell.dilation,
            )
        )  # fmt: skip

    def _shown_to(self, probe: Callable[..., Any]) -> Callable[..., Any]:
        return lambda dy, x: probe(x, dy)  # of the convolution that this one is the transpose of

    def to_dense(self) -> nn.ConvTranspose2d:
        """A torch.nn.ConvTranspose2d with the same outputs, zeros exact, and the same bias Parameter."""
        return filled(self._shell, self.dense_weight(), self.values.requires_grad, self.bias, self.training)

    def extra_repr(self) -> str:
        """What repr() shows."""
        window = self.window
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={window.kernel}, stride={window.stride}, "
            f"padding={window.padding[::2]}, output_padding={self.output_padding}, dilation={window.dilation}, "
            f"groups={window.groups}, {self._shared_repr()}"
        )
