"""Frozen layers with what follows them, run one behind the other without a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.freezing.prefix.folded import Pick
from spfde.freezing.prefix.kinds import FoldedLayer
from spfde.freezing.prefix.lanes import Together, schedule
from spfde.freezing.prefix.linear import FoldedLinear
from spfde.kernels.dispatch import rule
from spfde.kernels.dtypes import in_torch_ops, through_dispatcher
from spfde.kernels.norm_act import ACTIVATIONS
from spfde.nn.norm import ADDITIONS

MOST = 16  # kinds of input that a chain remembers
_APART = {**ACTIVATIONS, "gelu": F.gelu}
# A GELU of its own is as many bytes again as the widest activation of a transformer: to find them takes longer than it.
_IN_PLACE = {
    "none": lambda y: y, "relu": F.relu_, "relu6": lambda y: F.relu6(y, inplace=True), "gelu": torch.ops.aten.gelu_,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """act(norm(layer(x)) + residual): x and the residual are values of a `Chain` by number.

    add: how the residual is added, of `ADDITIONS`. act: of `ACTIVATIONS`, or "gelu".
    """

    folded: FoldedLayer
    source: int
    residual: int | None = None
    add: str = "add"
    act: str = "none"

    @property
    def text(self) -> str:
        """What it does at once, as `spfde.fuse.report` writes it."""
        if isinstance(self.folded, Pick):
            return "shortcut"
        parts = (
            ("norm", self.folded.norm is not None),
            ("add", self.residual is not None),
            (self.act, self.act != "none"),
        )
        kind = "linear" if isinstance(self.folded, FoldedLinear) else "conv"
        return "+".join([kind, *(name for name, there in parts if there)])

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
        return _APART[self.act](y)


class Chain:
    """What a rewritten forward calls: steps on `inputs` values, which come first in the numbering, each makes one more.

    It returns the last. Where an input wants a gradient, or torch.func looks on, the modules themselves run. steady: an
    image's result does not depend on its batch, where a kernel can see to it. instead: what is called in its place.
    """

    __module__ = __name__  # with __name__, what torch.fx writes a call of

    def __init__(self, inputs: int, steps: Sequence[Step], steady: bool = False) -> None:
        self.inputs, self.steps, self.steady = inputs, tuple(steps), steady
        self.__name__ = self.__qualname__ = "chain"
        self.instead: Callable[[], Tensor] | None = None
        self._orders: dict[Any, list[Together | int]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Chain:
        return self  # copies of a model share the function that calls it

    def __call__(self, *inputs: Any) -> Tensor:
        """The last value, of inputs [n, ...]."""
        if self.instead is not None:
            return self.instead()
        wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        through = torch.compiler.is_compiling() or any(isinstance(x, Tensor) and through_dispatcher(x) for x in inputs)
        if wanted or (not torch.compiler.is_compiling() and in_torch_ops()):
            return self._one_by_one("plain", inputs)
        if through:
            return self._one_by_one("run", inputs)
        values = dict(enumerate(inputs))
        for part in self._order(inputs):
            if isinstance(part, int):
                values[self.inputs + part] = self._step("run", part, values)
            else:
                part.run(values)
        return values[self.inputs + len(self.steps) - 1]

    def _one_by_one(self, how: str, inputs: tuple[Any, ...]) -> Tensor:
        values = dict(enumerate(inputs))
        for i in range(len(self.steps)):
            values[self.inputs + i] = self._step(how, i, values)
        return values[self.inputs + len(self.steps) - 1]

    def _step(self, how: str, number: int, values: dict[int, Any]) -> Tensor:
        step = self.steps[number]
        return getattr(step, how)(values[step.source], None if step.residual is None else values[step.residual])

    def _order(self, inputs: tuple[Any, ...]) -> list[Together | int]:
        """What runs in which order for such inputs: the one that is kept, else a new one."""
        device = "cpu" if torch.is_autocast_enabled("cpu") else None
        key = (
            *((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else type(x) for x in inputs),
            torch.get_autocast_dtype(device) if device else None, torch.get_num_threads(), rule.generation,
            *((step.folded.version, step.folded.key) for step in self.steps),
        )  # fmt: skip
        order = self._orders.get(key)
        if order is None:
            if len(self._orders) >= MOST:
                self._orders.clear()
            order = self._orders[key] = schedule(self.steps, inputs, self.steady)
        return order
