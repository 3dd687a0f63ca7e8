"""How tensors lie in memory, as the native kernels are told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format that x has, or is copied to."""
    if x.dim() != 4 or x.is_contiguous() or torch._C._functorch.is_batchedtensor(x):  # vmap does not tell
        return torch.contiguous_format
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def pixels_of(x: Tensor) -> Tensor:
    """[batch x height x width, channels] of images [batch, channels, height, width]; a view of channels_last ones."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def images_of(y: Tensor, like: Tensor) -> Tensor:
    """The images [batch, channels, height, width] of such pixels, sized as `like`, in channels_last memory."""
    return y.view(len(like), *like.shape[2:], y.shape[1]).permute(0, 3, 1, 2)


def in_lanes(x: Tensor) -> bool:
    """Whether the samples of x [batch, features] are neighbours in memory, feature after feature: the lane layout."""
    return not x.is_contiguous() and x.stride() == (1, x.shape[0])


def empty_like_layout(x: Tensor, features: int) -> Tensor:
    """An empty [batch, features] in the layout of x [batch, ...], row-major or in lanes."""
    return x.new_empty(features, len(x)).t() if in_lanes(x) else x.new_empty(len(x), features)


def reshaped(y: Tensor, shape: Sequence[int]) -> Tensor:
    """y in another shape, for torch no view of it: a view loses the hooks on it once it is changed in place."""
    return torch.ops.aten._unsafe_view.default(y, shape)


def address(tensor: Tensor | None) -> int:
    """Where the tensor's first element is, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def check_parameters(values: Tensor, shape: tuple[int, ...], bias: Tensor | None, rows: int) -> None:
    """Raises ValueError unless values and bias have the sizes a kernel reads without asking."""
    if tuple(values.shape) != shape:
        raise ValueError(f"expected values of shape {list(shape)}, got {list(values.shape)}")
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"expected bias of shape [{rows}], got {list(bias.shape)}")
