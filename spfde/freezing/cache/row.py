"""What is kept of one sample: the activation in a storage type, as contiguous memory, and its scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STORED = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.uint8,  # codes 0 to 255, from the least to the largest value of a channel
}
ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)
LEVELS = 255


@dataclass(frozen=True)
class Row:
    """The form of the rows of a store.

    shape: of a sample's activation. dtype: of the activations. name: of the storage type, one of STORED. Activations
    that are no wider than that are kept as they are, except under int8. channels_last: activations [n, c, h, w] are
    kept, and returned, in that memory format.

    int8 keeps the range of each channel of each sample: the error is at most 1/510 of it, and the least value, 0 behind
    a ReLU, is exact. Channels are the first dimension of [c, h, w], the last of [tokens, c]; [c] has one range in all.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not self.shape or any(not isinstance(size, int) or size < 1 for size in self.shape):
            raise ValueError(
                f"expected the shape of a sample's activation, got {list(self.shape)}, try output.shape[1:]"
            )
        if self.dtype not in ACTIVATIONS:
            names = ", ".join(str(each).removeprefix("torch.") for each in ACTIVATIONS)
            raise TypeError(f"expected activations of type {names}, got {self.dtype}, try a cache of none")
        if self.channels_last and len(self.shape) != 3:
            raise ValueError(
                f"expected activations [n, c, h, w] with channels_last, got a sample's shape {list(self.shape)},"
                " try channels_last=False"
            )

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Row:
        """The one that `describe` describes."""
        shape, dtype = tuple(described["shape"]), getattr(torch, described["dtype"])
        return cls(shape, dtype, described["stored"], described["channels_last"])

    @property
    def exact(self) -> bool:
        """Whether what is read is what was written, to the bit."""
        return self.stored == self.dtype

    @property
    def stored(self) -> torch.dtype:
        """The type in memory."""
        kind = STORED[self.name]
        return self.dtype if kind.is_floating_point and self.dtype.itemsize <= kind.itemsize else kind

    @property
    def physical(self) -> tuple[int, ...]:
        """The shape in the order of memory."""
        if not self.channels_last:
            return self.shape
        channels, height, width = self.shape
        return height, width, channels

    @property
    def channels(self) -> int:
        """Ranges that a row has: 0 but for int8."""
        if self.stored != torch.uint8:
            return 0
        return 1 if len(self.shape) == 1 else self.shape[-1 if len(self.shape) == 2 else 0]

    @property
    def bytes(self) -> int:
        """Of one row with its scales."""
        return math.prod(self.shape) * self.stored.itemsize + 8 * self.channels

    def pack(self, activations: Tensor) -> Tensor:
        """Activations [n, *shape] as contiguous memory [n, *physical] on the CPU; no copy where they are that."""
        rows = activations.permute(0, 2, 3, 1) if self.channels_last else activations
        return rows.to("cpu").contiguous()

    def view_of(self, out: Tensor, count: int) -> Tensor:
        """Memory [n, *physical] of activations [n, *shape] that are to be written.

        Raises:
            ValueError: they are of another shape, type, device or memory format.
        """
        rows = out.permute(0, 2, 3, 1) if self.channels_last and out.ndim == 4 else out
        fits = out.shape == (count, *self.shape) and out.dtype == self.dtype and out.device.type == "cpu"
        if not fits or not rows.is_contiguous():
            form = "channels_last" if self.channels_last else "contiguous"
            raise ValueError(
                f"expected out as {form} {self.dtype} {[count, *self.shape]} on the CPU, got {out.dtype}"
                f" {list(out.shape)} with strides {list(out.stride())}, try out=None"
            )
        return rows

    def unpack(self, rows: Tensor) -> Tensor:
        """The view [n, *shape] of rows [n, *physical]."""
        return rows.permute(0, 3, 1, 2) if self.channels_last else rows

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows [n, *physical] in the storage type, and their scales float32 [n, 2, channels]: step and least value."""
        if not self.channels:
            return rows.to(self.stored), None
        values = rows.float()
        across = [dim for dim in range(1, rows.ndim) if dim != self._channel]
        low, high = values.amin(across), values.amax(across)
        step = (high - low) / LEVELS
        steps = torch.where(step > 0, step, 1)  # a channel that never varies, or hardly
        scales = torch.stack([step.view(len(rows), -1), low.view(len(rows), -1)], 1)
        codes = values.sub(self._spread(low)).div_(self._spread(steps)).round_().clamp_(0, LEVELS)
        return codes.to(torch.uint8), scales

    def decode(self, codes: Tensor, scales: Tensor | None, rows: Tensor) -> Tensor:
        """Writes what `encode` made into `rows` [n, *physical] of the activations' type; returns them."""
        if scales is None:
            return rows.copy_(codes)
        values = rows if rows.dtype == torch.float32 else torch.empty(rows.shape)
        values.copy_(codes)
        values.mul_(self._spread(scales[:, 0])).add_(self._spread(scales[:, 1]))
        return rows if values is rows else rows.copy_(values)

    def describe(self) -> dict[str, Any]:
        """Itself in plain values."""
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "stored": next(name for name, kind in STORED.items() if kind == self.stored),
            "channels_last": self.channels_last,
        }

    @property
    def _channel(self) -> int | None:
        """The dimension of rows [n, *physical] that is the channel."""
        if len(self.shape) == 1:
            return None
        return len(self.shape) if len(self.shape) == 2 or self.channels_last else 1

    def _spread(self, each: Tensor) -> Tensor:
        """Values [n, channels] so that they broadcast over rows."""
        sizes = [1] * (len(self.shape) + 1)
        if self._channel is not None:
            sizes[self._channel] = self.channels
        return each.reshape(len(each), *sizes[1:])
