"""What follows a product: y = act(scale z + bias + residual). Triton's products do it before they write z."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

ACTIVATIONS = ("none", "relu", "relu6", "gelu")


class Epilogue(NamedTuple):
    """y = act(scale z + bias + residual), or act(scale z + bias) + residual if `after`.

    scale, bias: [outputs] or None. residual: shaped like y or None. act: one of ACTIVATIONS, gelu the exact one.
    """

    bias: Tensor | None = None
    scale: Tensor | None = None
    residual: Tensor | None = None
    act: str = "none"
    after: bool = False

    def fits(self, shape: tuple[int, ...], outputs: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether every tensor is there for a y of this shape, precision and device, vectors without gaps."""
        vectors = (v for v in (self.bias, self.scale) if v is not None)
        if any(v.shape != (outputs,) or v.device != device or not v.is_contiguous() for v in vectors):
            return False
        r = self.residual
        return r is None or (r.shape == shape and r.dtype == dtype and r.device == device)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them."""
        return self.bias, self.scale, self.residual

    @property
    def has_gradient(self) -> bool:
        """Whether backward knows it: a bias, and ReLU, whose mask the result shows."""
        return self.scale is None and self.residual is None and self.act in ("none", "relu")

    @property
    def constants(self) -> dict[str, Any]:
        """What a kernel is compiled for."""
        where = "none" if self.residual is None else "after" if self.after else "before"
        return {"BIAS": self.bias is not None, "SCALE": self.scale is not None, "RESIDUAL": where, "ACT": self.act}


PLAIN = Epilogue()


def relu_grad(dy: Tensor, y: Tensor) -> Tensor:
    """The gradient that ReLU passes on, of its result y."""
    return torch.ops.aten.threshold_backward(dy, y, 0)


def untracked(*tensors: Tensor | None) -> bool:
    """Whether no derivative of what is made of these can be asked for, by any of torch's ways: no backward is kept."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return False
    return forward_ad._current_level < 0 and torch._C._functorch.peek_interpreter_stack() is None
