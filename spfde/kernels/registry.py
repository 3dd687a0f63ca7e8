"""The kernels there are: one object each, which dispatch, tuning, fusing, summaries and topologies ask.

A kernel for another device is one module that registers its object (see CONTRIBUTING.md); nothing compares names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spfde._names import unknown
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.gpu import Config, Gpu
from spfde.kernels.problem import Problem
from spfde.sparse.kernel_index import KernelIndex, Window
from spfde.sparse.plan import Plan

Programs = tuple[int, list[Config]]  # outputs of a program, and the launches that are worth timing for it

# (x, values [capacity, R, C], bias, plan) -> y, of torch's own ops.
Composite = Callable[[Tensor, Tensor, Tensor | None, Plan], Tensor]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class NormedConv2d(ABC):
    """A convolution and the norm behind it in fewer passes over memory, see `conv2d_norm_act`."""

    @abstractmethod
    def applies(self, window: Window, block: tuple[int, int]) -> bool:
        """Whether it is there for such weights, and gains something."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        values: Tensor,
        conv_bias: Tensor | None,
        index: KernelIndex,
        problem: Problem,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        act: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(z, y, mean, var): z = conv2d(x), and what `norm_act` makes of it, the residual in z's memory format."""

    @abstractmethod
    def gradients(
        self,
        dy: Tensor,
        z: Tensor,
        y: Tensor | None,
        x: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        need_conv_bias: bool,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        training: bool,
        eps: float,
        act: str,
    ) -> tuple[Tensor | None, ...] | None:
        """The gradients of x, values, conv_bias, residual (only with y), weight and bias; None: take them apart."""


class Product(ABC):
    """The three products of one op ("linear" or "conv2d") by one kernel, outside autograd.

    fuses_epilogue: its forward takes an `Epilogue`, if `fuses` says so. normed: what computes a norm behind it as well.

    values: [units, 1, 1] or [capacity, R, C], as `Plan.arrange` gives them. index: as `Kernel.index` gives it. Linear
    activations are [batch, features], images [batch, channels, height, width]. weight: the dense one, where
    `Kernel.multiplies_dense` asks for it.
    """

    fuses_epilogue: ClassVar[bool] = False
    normed: ClassVar[NormedConv2d | None] = None

    def fuses(self, epilogue: Epilogue, problem: Problem, dtype: torch.dtype, graph: bool) -> bool:
        """Whether `forward` takes this one. dtype: of x and values. graph: a backward pass may follow."""
        return self.fuses_epilogue

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: KernelIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """y = X W^T + bias. epilogue: instead of the bias, where it `fuses`."""

    @abstractmethod
    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        """dX = dY W, of the input's shape `size`."""

    @abstractmethod
    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        """dW = dY^T X at the stored places [-1, R, C], and the bias gradient [outputs] (empty unless `bias`)."""

    def gradients(
        self,
        dy: Tensor,
        x: Tensor | None,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        needs: Sequence[bool],
        weight: Tensor | None = None,
    ) -> Gradients:
        """The gradients of x, values and bias, None where `needs` says so: the backward pass of every route."""
        need_x, need_values, need_bias = needs
        dx = dvalues = dbias = None
        if need_x:
            dx = self.input_grad(dy, values, index, problem, size, weight)
        if need_values:
            dvalues, dbias = self.weight_grad(dy, x, index, values.shape[1:], problem, need_bias)
        elif need_bias:
            dbias = bias_grad(dy)
        return dx, dvalues, dbias if need_bias else None


def bias_grad(dy: Tensor) -> Tensor:
    """The sum of dY [batch, outputs, ...] over all but the outputs."""
    return dy.sum(0) if dy.dim() == 2 else dy.sum((0, *range(2, dy.dim())))


@dataclass(frozen=True)
class Prediction:
    """What a kernel is expected to gain over the masked dense product, whether that is enough, and why."""

    gain: float
    pays: bool
    reason: str


class Kernel(ABC):
    """One way to multiply by a sparse weight.

    name: as `layer.kernel` takes it. devices: types that it is offered for. skips_zeros: it leaves out what is not
    stored. index_type: a NamedTuple that begins with the fields of `KernelIndex`. products: by op.
    """

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ()
    skips_zeros: ClassVar[bool] = True
    index_type: ClassVar[type[KernelIndex]] = KernelIndex
    products: ClassVar[Mapping[str, Product]]

    @abstractmethod
    def obstacle(self, device: str, dtype: torch.dtype, problem: Problem) -> str | None:
        """Why it cannot run for this problem on a type of device, or None."""

    def hindrance(self, problem: Problem) -> str | None:
        """Why it runs on no machine for this problem, a part of `obstacle`; None where it runs on some."""
        return None

    def predict(self, dtype: torch.dtype, problem: Problem) -> Prediction:
        """What it gains where it can run and nothing was measured: nothing, unless it skips zeros and says more."""
        return Prediction(1.0, False, f"{self.name} multiplies zeros as well")

    def launches(self, plan: Plan, problem: Problem, dtype: torch.dtype, gpu: Gpu) -> Mapping[str, Programs]:
        """What the tuner may choose among on a GPU, by op ("forward", "input_grad", "weight_grad"); {}: nothing."""
        return {}

    def index(self, plan: Plan) -> KernelIndex:
        """What it reads of a plan."""
        return plan.kernel_index

    def extends_index(self, plan: Plan) -> bool:
        """Whether it may be chosen for a layer of this plan and reads more than the plan's `kernel_index`."""
        return False

    def composite(self, plan: Plan) -> Composite | None:
        """What runs instead of the products and is differentiated by torch, None where they run."""
        return None

    def multiplies_dense(self, block: Sequence[int]) -> bool:
        """Whether it is given the dense weight for values in blocks of this size."""
        return not self.skips_zeros


_KERNELS: dict[str, Kernel] = {}
listeners: list[Callable[[], None]] = []  # called when a kernel comes or goes


def register(kernel: Kernel) -> Kernel:
    """Makes a kernel known under its name.

    Raises:
        TypeError: it skips zeros and says no gain.
        ValueError: another one has that name, or its index cannot be told from another kernel's.
    """
    if kernel.name in _KERNELS:
        raise ValueError(f"expected a kernel name that is free, got {kernel.name!r}, try another one")
    if kernel.skips_zeros and type(kernel).predict is Kernel.predict:
        raise TypeError(f"expected {type(kernel).__name__} to define predict, since it skips zeros, got none")
    fields = len(kernel.index_type._fields)
    others = {k.index_type for k in _KERNELS.values() if len(k.index_type._fields) == fields}
    if others - {kernel.index_type}:
        raise ValueError(f"expected an index_type of a length of its own, got {fields} fields, try one more")
    _KERNELS[kernel.name] = kernel
    _tell()
    return kernel


def unregister(name: str) -> None:
    """Forgets a kernel that `register` made known."""
    _KERNELS.pop(get(name).name)
    _tell()


def _tell() -> None:
    for listener in listeners:
        listener()


def get(name: str) -> Kernel:
    """The kernel of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in _KERNELS:
        raise unknown("kernel", name, ["auto", *_KERNELS])
    return _KERNELS[name]


def names() -> tuple[str, ...]:
    """The kernels' names, in the order in which they were registered."""
    return tuple(_KERNELS)


def sparse_kernels(device: str) -> tuple[Kernel, ...]:
    """Those that skip zeros and are offered for a type of device."""
    return tuple(kernel for kernel in _KERNELS.values() if kernel.skips_zeros and device in kernel.devices)


def skips_zeros(name: str) -> bool:
    """Whether the kernel of this name leaves out what is not stored."""
    return get(name).skips_zeros


def index_for(plan: Plan, route: str) -> KernelIndex:
    """The index of a plan for a registered op, whose kernel is settled only when it runs: all that it may read."""
    if route in _KERNELS:
        return _KERNELS[route].index(plan)
    for kernel in sparse_kernels(plan.index.col.device.type):
        if kernel.extends_index(plan):
            return kernel.index(plan)
    return plan.kernel_index


def unpacked(tensors: Sequence[Tensor]) -> KernelIndex:
    """The index from the list that a registered op is given."""
    types = {len(kernel.index_type._fields): kernel.index_type for kernel in _KERNELS.values()}
    return types[len(tensors)](*tensors)
