"""Frozen convolutions with what follows them, run one behind the other without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.freezing.prefix.folded import Folded
from spfde.kernels.dtypes import in_torch_ops
from spfde.nn.norm import ADDITIONS

ACTIVATIONS = {"none": lambda y: y, "relu": F.relu, "relu6": F.relu6}
_IN_PLACE = {"none": lambda y: y, "relu": F.relu_, "relu6": lambda y: F.relu6(y, inplace=True)}


@dataclass(frozen=True)
class Step:
    """act(norm(conv(x)) + residual): x and the residual are values of a `Chain` by number.

    add: how the residual is added, of `ADDITIONS`. act: of `ACTIVATIONS`.
    """

    folded: Folded
    source: int
    residual: int | None = None
    add: str = "add"
    act: str = "none"

    @property
    def text(self) -> str:
        """What it does at once, as `spfde.fuse.report` writes it."""
        parts = (
            ("norm", self.folded.norm is not None),
            ("add", self.residual is not None),
            (self.act, self.act != "none"),
        )
        return "+".join(["conv", *(name for name, there in parts if there)])

    def run(self, x: Tensor, residual: Any) -> Tensor:
        """The output, folded and in place."""
        alike = self.residual is None or (isinstance(residual, Tensor) and residual.dtype == x.dtype)
        y = self.folded.with_epilogue(x, residual, self.act) if alike else None
        if y is not None:
            return y
        y = self.folded.product(x)
        if torch.compiler.is_compiling():
            return self._end(y, residual)
        if self.residual is not None:
            alike = isinstance(residual, Tensor) and residual.shape == y.shape and residual.dtype == y.dtype
            y = y.add_(residual) if alike else ADDITIONS[self.add](y, residual)
        return _IN_PLACE[self.act](y)

    def plain(self, x: Tensor, residual: Any) -> Tensor:
        """The output by the modules themselves, with a graph where one is wanted."""
        y = self.folded.layer(x)
        return self._end(y if self.folded.norm is None else self.folded.norm(y), residual)

    def _end(self, y: Tensor, residual: Any) -> Tensor:
        y = y if self.residual is None else ADDITIONS[self.add](y, residual)
        return ACTIVATIONS[self.act](y)


class Chain:
    """What a rewritten forward calls: steps on `inputs` values, which come first in the numbering, each makes one more.

    It returns the last. Where an input wants a gradient, or torch.func looks on, the modules themselves run.
    """

    __module__ = __name__  # with __name__, what torch.fx writes a call of

    def __init__(self, inputs: int, steps: Sequence[Step]) -> None:
        self.inputs, self.steps = inputs, tuple(steps)
        self.__name__ = self.__qualname__ = "chain"

    def __call__(self, *inputs: Any) -> Tensor:
        wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        if wanted or (not torch.compiler.is_compiling() and in_torch_ops()):
            return self._through("plain", inputs)
        return self._through("run", inputs)

    def _through(self, how: str, inputs: tuple[Any, ...]) -> Tensor:
        values = list(inputs)
        for step in self.steps:
            residual = None if step.residual is None else values[step.residual]
            values.append(getattr(step, how)(values[step.source], residual))
        return values[-1]
