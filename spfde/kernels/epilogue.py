"""What follows a product: y = act(scale z + bias + residual). Products on a GPU do it before they write z."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

ACTIVATIONS = ("none", "relu", "relu6", "gelu")


class Epilogue(NamedTuple):
    """y = act(scale z + bias + residual), or act(scale z + bias) + residual if `residual_after_act`.

    scale, bias: [outputs] or None. residual: shaped like y or None; y has its precision. act: one of ACTIVATIONS, gelu
    the exact one. pre_act_out: where what the activation is given goes as well, rounded as y is; the
    activation then sees it so.
    """

    bias: Tensor | None = None
    scale: Tensor | None = None
    residual: Tensor | None = None
    act: str = "none"
    residual_after_act: bool = False
    pre_act_out: Tensor | None = None

    def fits(self, shape: tuple[int, ...], outputs: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether every tensor is there for a y of this shape, precision and device, vectors without gaps.

        A float32 residual makes a float32 y of any, as a sum in torch does.
        """
        vectors = (v for v in (self.bias, self.scale) if v is not None)
        if any(v.shape != (outputs,) or v.device != device or not v.is_contiguous() for v in vectors):
            return False
        r = self.residual
        return r is None or (r.shape == shape and r.dtype in (dtype, torch.float32) and r.device == device)

    def in_precision(self, dtype: torch.dtype) -> Epilogue:
        """The same for a product that is computed in `dtype`."""
        r = self.residual
        return self if r is None else self._replace(residual=r.to(torch.promote_types(r.dtype, dtype)))

    def result(self, dtype: torch.dtype) -> torch.dtype:
        """The precision of y where the product's result has `dtype`."""
        return dtype if self.residual is None else self.residual.dtype

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that it reads."""
        return self.bias, self.scale, self.residual

    @property
    def has_gradient(self) -> bool:
        """Whether backward knows it: all but a scale."""
        return self.scale is None

    @property
    def needs_pre_act(self) -> bool:
        """Whether y does not show where the activation bends, so that backward needs what it was given."""
        if self.act == "relu6":  # it does, but torch lets a caller change y before backward
            return True
        return self.act == "gelu" or (self.act == "relu" and self.residual_after_act and self.residual is not None)

    @property
    def constants(self) -> dict[str, Any]:
        """What a kernel is compiled for."""
        where = "none" if self.residual is None else "after" if self.residual_after_act else "before"
        parts = {"BIAS": self.bias, "SCALE": self.scale, "KEEP": self.pre_act_out}
        return {**{name: part is not None for name, part in parts.items()}, "RESIDUAL": where, "ACT": self.act}


PLAIN = Epilogue()


def act_grad(dy: Tensor, pre_act: Tensor | None, act: str) -> Tensor:
    """The gradient that an activation passes on.

    pre_act: what it was given; for ReLU what came of it will do, for "none" nothing is needed.
    """
    if act == "gelu":
        return torch.ops.aten.gelu_backward(dy, pre_act)
    if act == "relu6":
        return torch.ops.aten.hardtanh_backward(dy, pre_act, 0, 6)
    return torch.ops.aten.threshold_backward(dy, pre_act, 0) if act == "relu" else dy


def untracked(*tensors: Tensor | None) -> bool:
    """Whether no derivative of what is made of these can be asked for, by any of torch's ways: no backward is kept."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return False
    return forward_ad._current_level < 0 and torch._C._functorch.peek_interpreter_stack() is None
