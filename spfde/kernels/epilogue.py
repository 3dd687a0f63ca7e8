"""What follows a product: y = act(scale z + bias + residual). Triton's products do it before they write z."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

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

    @property
    def constants(self) -> dict[str, Any]:
        """What a kernel is compiled for."""
        where = "none" if self.residual is None else "after" if self.after else "before"
        return {"BIAS": self.bias is not None, "SCALE": self.scale is not None, "RESIDUAL": where, "ACT": self.act}


PLAIN = Epilogue()
